"""`toolkit convert` beside `cp` of the same source on the same disk, in turns, and its memory.

    python benchmarks/convert.py DIRECTORY [--layers 4] [--rounds 3] [--baseline]

Writes a checkpoint of Llama-3-70B's shapes (benchmarks/llama70b.py) into DIRECTORY, unless it is there, and in
each round copies it with cp, and converts it from bfloat16 to FP16 at PP 4 x TP 2 (two layers: PP 2 x TP 4) with
the command line. Both times include `sync`, and both begin with all of it on disk and nothing in memory (as
root: drop_caches). The copies are removed. `--baseline` loads the model with transformers and splits it instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import llama70b
import yaml

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline", action="store_true")
    options = parser.parse_args()
    source = options.directory / f"llama70b-{options.layers}"
    if not source.exists():
        llama70b.write(source, options.layers)
    print("cold caches" if forget() else "caches as they were (not root)")
    ratios = []
    for _ in range(options.rounds):
        copy, written, _ = timed(["cp", "-r", source, options.directory / "copy"], options.directory / "copy")
        print(f"cp       {copy:6.1f} s  {written / 1e9:.3f} GB  {os.getloadavg()[0]:.1f} load", flush=True)
        command, target = work(options.directory, source, options.baseline)
        took, written, peak = timed(command, target)
        ratios.append(took / copy)
        line = f"{took:6.1f} s  {written / 1e9:.3f} GB  peak {peak / 1e6:,.0f} MB  {ratios[-1]:.2f} x cp"
        print(f"{'baseline' if options.baseline else 'convert'}  {line}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def work(directory: Path, source: Path, baseline: bool) -> tuple[list[str | Path], Path]:
    """The command to time, and the directory that it writes."""
    output = directory / "output"
    pp = min(4, json.loads((source / "config.json").read_text())["num_hidden_layers"])
    if baseline:
        ranks = ["--tp", str(8 // pp), "--pp", str(pp)]
        return [sys.executable, HERE / "naive_convert.py", source, output, *ranks], output
    config = directory / "deployment.yaml"
    content = {
        "engine": "tensorrt",
        "model": {"path": str(source)},
        "parallel": {"tp": 8 // pp, "pp": pp},
        "limits": {"max_seq_len": 4096, "max_num_tokens": 4096},
        "output": str(output),
    }
    config.write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "toolkit", "convert", config], output


def timed(command: list[str | Path], target: Path) -> tuple[float, int, int]:
    """Seconds with `sync`, bytes written, and the process's largest memory without file pages, in bytes."""
    shutil.rmtree(target, ignore_errors=True)
    forget()
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    os.sync()
    took = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"failed: {command}")
    written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target)
    return took, written, peak


def anonymous(pid: int) -> int:
    """Bytes of resident memory that are not pages of files."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))


def forget() -> bool:
    """Write everything to disk and drop it from memory; False where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
