"""What `trtllm-build` says while it works, and what its failures mean.

Sources of the lines: logs that users of TensorRT-LLM 0.18 to 1.2 have published, and NVIDIA/TensorRT-LLM
tensorrt_llm/commands/build.py and builder.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

KEPT_LINES = 400
"""Of the end of the log, which is where a failure is told."""
VERSION = re.compile(r"TensorRT-LLM version: (\S+)")
SERIALIZING = re.compile(r"Serializing engine to .*?rank(\d+)\.engine")
SERIALIZED = "Engine serialized. Total time"
NETWORK = "Total time of building Unnamed Network"
FINISHED = re.compile(r"Total time of building all engines: (\S+)")
PEAK = re.compile(r"Peak memory usage during Engine building and serialization: CPU: (\d+) MiB")
ERROR = re.compile(r"\[E\]|(?:Error|Exception)\b.*:|error:", re.IGNORECASE)


class Failure(NamedTuple):
    """A way to fail: what its log shows, what it means, what to do. {workers} and {gpu} are filled in."""

    shows: re.Pattern[str]
    what: str
    hint: str


FEWER = "Build fewer ranks at once: engine.workers, {workers} now; or free host memory."
FAILURES = (
    Failure(
        re.compile(r"No space left on device|Disk quota exceeded"),
        "the disk is full",
        "Free space there, or set `output` to a larger disk; it goes on with the ranks that are left.",
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
        "trtllm-build does not know a flag: it is not of the release that engine.version says",
        "Set engine.version to what the image holds.",
    ),
    Failure(
        re.compile(r"[Vv]ersion tag does not match|incompatible with the current|driver version is insufficient"),
        "the versions of TensorRT, CUDA and the driver do not go together",
        "Build in the image of docs/reference/contracts.md, on a driver that it supports.",
    ),
)


@dataclass
class BuildLog:
    """What has been told so far."""

    version: str | None = None
    networks: int = 0
    """Ranks whose engine has been computed, and is written or will be."""
    written: int = 0
    """Ranks whose engine is on disk."""
    begun: set[int] = field(default_factory=set)
    """Ranks that are being written, or are."""
    finished: bool = False
    peak_bytes: int = 0
    """Host memory that the largest process has held."""
    last: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """One more line. Ranks write at once, so that it may hold what two of them have said."""
        self.last = [*self.last[1 - KEPT_LINES :], line]
        if found := VERSION.search(line):
            self.version = self.version or found[1]
        self.begun.update(int(found[1]) for found in SERIALIZING.finditer(line))
        if found := PEAK.search(line):
            self.peak_bytes = max(self.peak_bytes, int(found[1]) << 20)
        self.networks += line.count(NETWORK)
        self.written += line.count(SERIALIZED)
        self.finished = self.finished or bool(FINISHED.search(line))

    def failure(self, killed: bool) -> tuple[str, str | None]:
        """What went wrong and what to do, as far as the log tells; `killed`: the program ended by a signal."""
        text = "\n".join(self.last)
        for one in FAILURES:
            if one.shows.search(text):
                return one.what, one.hint
        if killed:
            return "was killed, as the kernel does when host memory runs out", FEWER
        errors = [line for line in self.last if ERROR.search(line)]
        said = (errors or self.last or ["nothing"])[-1].strip()
        return f"failed: {said}", None
