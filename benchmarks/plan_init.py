"""What `toolkit init` chooses for some models on 8 H100 and 8 H200, as the table in docs/how-to/layouts.md.

python benchmarks/plan_init.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolkit.plan.starter import Wanted, start

SHAPES = Path(__file__).parents[1] / "tests" / "fixtures" / "shapes"
MODELS = ("llama-3.2-1b", "llama-3-8b", "llama-2-13b", "llama-3.1-70b", "llama-3.1-405b")
MACHINES = ("h100-sxm", "h200-sxm")


def main() -> None:
    print("| model, 8 GPUs | layout | max_sequences | max_num_tokens | why |")
    print("|---|---|---|---|---|")
    for model in MODELS:
        for machine in MACHINES:
            with tempfile.TemporaryDirectory() as folder:
                started = start(Wanted(SHAPES / model, Path(folder) / "init.yaml", hardware=machine))
            best = started.comparison.best
            limits, fp8 = best.deployment.limits, best.deployment.model.quantization == "fp8"
            name, why = f"{best.name}{', FP8' if fp8 else ''}", started.why.partition(": ")[2]
            cells = (f"{model}, {machine}", name, f"{limits.max_sequences}", f"{limits.max_num_tokens:,}", why)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
