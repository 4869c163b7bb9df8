"""Stands for `trtllm-build` in tests: takes exactly the flags of a release's table, works and fails like the real one.

One process a rank in a pool of --workers, or one rank after the other in a loop without; its log lines, outputs and
exit codes. The processes are forked, which is quick, where the real one spawns them. It is no engine builder: what it
writes are the checkpoint's bytes behind a header. How it shall fail is in the environment variable DOUBLE, as `what` or
`what:rank`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from toolkit.releases.release import release_of

VERSION = os.environ.get("DOUBLE_VERSION", "1.2.1")
HEADER = b"double of an engine\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("trtllm-build", allow_abbrev=False)
    for name, flag in release_of(VERSION).build_flags.items():
        if flag.kind == "switch":
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", default=flag.default, type=int if flag.kind == "int" else str)
    return parser.parse_args()


def fault(rank: int | None = None) -> str:
    what, _, where = os.environ.get("DOUBLE", "").partition(":")
    return what if where == ("" if rank is None else str(rank)) else ""


def say(text: str, source: str = "TRT-LLM", level: str = "I", end: str = "\n") -> None:
    print(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{source}] [{level}] {text}", end=end, flush=True)


def build_rank(rank: int, gpu: int, options: dict) -> bool:
    checkpoint, output = Path(options["checkpoint_dir"]), Path(options["output_dir"])
    config = json.loads((checkpoint / "config.json").read_text())
    weights = checkpoint / f"rank{rank}.safetensors"
    assert weights.is_file()
    say(f"Set gemm_plugin to {options['gemm_plugin']}.")
    say("Build TensorRT engine Unnamed Network 0")
    if fault(rank) == "oom":
        time.sleep(0.5)  # others get on meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    if fault(rank) == "hang":
        time.sleep(3600)
    if fault(rank) == "cuda":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if fault(rank) == "sm":
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    say("Engine generation completed in 1.5 seconds.", "TRT")
    say("[MemUsageStats] Peak memory usage during Engine building and serialization: CPU: 38513 MiB", "TRT")
    say("Total time of building Unnamed Network 0: 00:00:02")
    target = output / f"rank{rank}.engine"
    say(f"Serializing engine to {target}...")
    with target.open("wb") as file:
        file.write(HEADER)
        file.flush()
        if fault(rank) == "disk":
            raise OSError(28, "No space left on device")
        if fault(rank) == "half":
            time.sleep(3600)
        file.write(weights.read_bytes())
    say("Engine serialized. Total time: 00:00:01", end="" if fault() == "merged" else "\n")
    if rank == 0:
        build = {name: options[name] for name in ("max_batch_size", "max_num_tokens", "max_seq_len")}
        whole = {"version": VERSION, "pretrained_config": config, "build_config": build}
        (output / "config.json").write_text(json.dumps(whole))
    return True


def main() -> None:
    options = vars(parse())
    print(f"[TensorRT-LLM] TensorRT-LLM version: {VERSION}", flush=True)
    if fault() == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    config = json.loads((Path(options["checkpoint_dir"]) / "config.json").read_text())
    ranks, workers = range(config["mapping"]["world_size"]), options["workers"]
    failed = 0
    if workers == 1:
        for rank in ranks:
            build_rank(rank, 0, options)
    else:
        with ProcessPoolExecutor(mp_context=get_context("fork"), max_workers=workers) as pool:
            for future in as_completed([pool.submit(build_rank, rank, rank % workers, options) for rank in ranks]):
                try:
                    future.result()
                except Exception:
                    traceback.print_exc()
                    failed += 1
        assert failed == 0, "Engine building failed, please check error log."
    Path(options["output_timing_cache"]).write_text("timings")
    say("Total time of building all engines: 00:00:05")


if __name__ == "__main__":
    sys.exit(main())
