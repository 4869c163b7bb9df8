"""Time and memory of `toolkit verify` on a checkpoint of Llama-3-70B's layer shapes.

    python benchmarks/verify.py DIRECTORY --layers 2 --tp 2 --pp 2

Writes the model (llama70b.py) and converts it, unless they are there. Then each part of verify runs as a process
that may not have more than --limit-gb of data, private mappings included; its anonymous memory is sampled.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import llama70b
import yaml

from toolkit.checkpoint import convert
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

SAMPLE_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=2)
    parser.add_argument("--limit-gb", type=float, default=16.0)
    options = parser.parse_args()
    model = options.directory / "model"
    if not model.exists():
        llama70b.write(model, options.layers)
    deployment = deploy(options.directory, model, options.tp, options.pp)
    convert(deployment)
    for part in ("--bytes", "--meaning"):
        command = [sys.executable, "-m", "toolkit", "verify", deployment.checkpoint_dir, "--against", model, part]
        code, seconds, peak = measure([str(word) for word in command], int(options.limit_gb * 1e9))
        print(f"{part}: exit code {code}, {seconds:.1f} s, at most {peak / 1e9:.2f} GB of anonymous memory", flush=True)


def deploy(directory: Path, model: Path, tp: int, pp: int) -> Deployment:
    file = directory / "verify.yaml"
    content = {
        "engine": "tensorrt",
        "model": {"path": str(model), "dtype": "float16"},
        "parallel": {"tp": tp, "pp": pp},
        "output": str(directory / "work"),
    }
    file.write_text(yaml.safe_dump(content))
    return load_deployment(file)


def measure(command: list[str], limit: int) -> tuple[int, float, int]:
    """Exit code, seconds, and the largest sample of anonymous memory in bytes."""
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:")]
        peak = max([peak, *found])
        time.sleep(SAMPLE_S)
    return process.returncode, time.monotonic() - start, peak


if __name__ == "__main__":
    main()
