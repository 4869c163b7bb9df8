"""A trace of 1,000 made-up requests, the same each time: 5 per second, with the same first 512 tokens in all prompts.

python benchmarks/shared_prompts.py FILE
toolkit tune build_configs/llama3-70b-h100-pp4tp2-fp16.yaml --traffic FILE       # docs/how-to/kept-traffic.md
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

BLOCK, SHARED = 32, list(range(16))


def main(file: str) -> None:
    rnd, due, lines = random.Random(1), 0.0, []
    for number in range(1000):
        due += rnd.expovariate(5)
        prompt = len(SHARED) * BLOCK + rnd.randint(16, 900)
        own = [10_000 + number * 40 + block for block in range(math.ceil(prompt / BLOCK) - len(SHARED))]
        line = {"timestamp": int(due * 1000), "input_length": prompt, "output_length": rnd.randint(20, 230)}
        lines.append(json.dumps({**line, "hash_ids": SHARED + own, "block_tokens": BLOCK}))
    Path(file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
