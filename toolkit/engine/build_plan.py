"""A build, decided once for a command: from which checkpoint, with which flags, on which GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.sourced_value import SourcedValue
from toolkit.machine.gpus import Gpus

STAGE = "engine"
Progress = Callable[[int, int], None]
"""Called with (ranks done, ranks in all)."""
BuildFlag = SourcedValue[str | None]
"""A flag of trtllm-build. The value is None for a flag that takes none."""


@dataclass(frozen=True)
class BuildPlan:
    """What `toolkit.engine.run` does, and what it needs."""

    deployment: Deployment
    given: Path | None = None
    """The checkpoint of another tool to build from. None: the model is converted first."""
    flags: tuple[BuildFlag, ...] = ()
    """A rehearsal has none."""
    gpus: Gpus = field(default_factory=Gpus)
    """As NVML showed them. A rehearsal does not look."""
    built_from: str | None = None
    """Digest of the checkpoint that is there, if exactly this engine is built from it already."""

    @property
    def checkpoint(self) -> Path:
        return self.given or self.deployment.checkpoint_dir

    @property
    def needs_gpus(self) -> bool:
        """False for a rehearsal, and for engines that are built already: those need nothing from this machine."""
        return self.deployment.kind.on_gpus and self.built_from is None

    @property
    def lines(self) -> list[str]:
        """A line for each flag: its value, where that is short, and where it comes from."""
        short = {flag.name: "" if flag.value is None or "/" in flag.value else flag.value for flag in self.flags}
        names, values = max(map(len, short), default=0), max(map(len, short.values()), default=0)
        return [f"{flag.name:{names}}  {short[flag.name]:{values}}  {flag.source}" for flag in self.flags]

    @property
    def workers(self) -> int:
        """Ranks that are built at once."""
        return next((int(flag.value or 1) for flag in self.flags if flag.name == "workers"), 1)
