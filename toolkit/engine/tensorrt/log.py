"""Reads what `trtllm-build` prints while it works, and explains its failures.

Sources of the lines: logs that users of TensorRT-LLM 0.18 to 1.2 have published, and NVIDIA/TensorRT-LLM
tensorrt_llm/commands/build.py and builder.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

KEPT_LINES = 400
"""Lines that are kept from the end of the log, where a failure shows."""
VERSION = re.compile(r"TensorRT-LLM version: (\S+)")
SERIALIZING = re.compile(r"Serializing engine to .*?rank(\d+)\.engine")
SERIALIZED = "Engine serialized. Total time"
FINISHED = re.compile(r"Total time of building all engines: (\S+)")
PEAK = re.compile(r"Peak memory usage during Engine building and serialization: CPU: (\d+) MiB")
ERROR = re.compile(r"\[E\]|(?:Error|Exception)\b.*:|error:", re.IGNORECASE)


class Failure(NamedTuple):
    """A way to fail: what the log shows, what it means, what to do. {workers} is filled in."""

    shows: re.Pattern[str]
    what: str
    hint: str


FEWER = "Build fewer ranks at once: engine.workers, {workers} now; or free host memory."
FAILURES = (
    Failure(
        re.compile(r"No space left on device|Disk quota exceeded"),
        "the disk is full",
        "Free space there, or set `output` to a larger disk. The next build goes on with the ranks that are left.",
    ),
    Failure(
        re.compile(r"CUDA(?: error)?:? out of memory|CUDA_ERROR_OUT_OF_MEMORY|[oO]utOfMemory"),
        "a GPU has too little free memory to build on",
        "End what else uses the GPUs (nvidia-smi), or lower limits.max_num_tokens.",
    ),
    Failure(
        re.compile(r"terminated abruptly|Killed\b|MemoryError|std::bad_alloc"),
        "a rank's process was killed, as the kernel does when host memory runs out",
        FEWER,
    ),
    Failure(
        re.compile(r"trtllm-build\W+(?:executable file|command) not found|trtllm-build\W+No such file"),
        "is not in the image",
        "Use one of docs/reference/contracts.md that has engines, or correct runtime.image.",
    ),
    Failure(
        re.compile(r"no kernel image is available|[Uu]nsupported (?:SM|compute|GPU)|SM \S+ is not supported"),
        "this release of TensorRT-LLM has no kernels for this GPU",
        "Use the release and the image that support it: docs/reference/contracts.md.",
    ),
    Failure(
        re.compile(r"unrecognized arguments: (.*)|invalid choice: (.*)|expected one argument"),
        "trtllm-build does not know a flag: its release is not the one in engine.version",
        "Set engine.version to the release in the image.",
    ),
    Failure(
        re.compile(r"[Vv]ersion tag does not match|incompatible with the current|driver version is insufficient"),
        "the versions of TensorRT, CUDA and the driver do not fit together",
        "Build in the image of docs/reference/contracts.md, on a driver that it supports.",
    ),
)


@dataclass
class BuildLog:
    """What the log has shown so far."""

    version: str | None = None
    written: int = 0
    """Ranks whose engine is on disk."""
    begun: set[int] = field(default_factory=set)
    """Ranks whose file was begun. It may be whole."""
    finished: bool = False
    peak_bytes: int = 0
    """The most host memory that one process held."""
    last: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Read one more line. Ranks print at the same time, so it may hold the words of two of them."""
        self.last = [*self.last[1 - KEPT_LINES :], line]
        if match := VERSION.search(line):
            self.version = self.version or match[1]
        self.begun.update(int(match[1]) for match in SERIALIZING.finditer(line))
        if match := PEAK.search(line):
            self.peak_bytes = max(self.peak_bytes, int(match[1]) << 20)
        self.written += line.count(SERIALIZED)
        self.finished = self.finished or bool(FINISHED.search(line))

    def failure(self, killed: bool) -> tuple[str, str | None]:
        """What went wrong, and what to do if the log tells. `killed`: a signal ended the program."""
        text = "\n".join(self.last)
        for failure in FAILURES:
            if failure.shows.search(text):
                return failure.what, failure.hint
        if killed:
            return "was killed, as the kernel does when host memory runs out", FEWER
        errors = [line for line in self.last if ERROR.search(line)]
        last_words = (errors or self.last or ["it printed nothing"])[-1].strip()
        return f"failed: {last_words}", None
