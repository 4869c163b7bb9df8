"""The directory beside the engine's that `trtllm-build` writes to, which stays when a build is cut off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files.json_file import read_json

PROGRAM = "trtllm-build"
STATE = "ranks.json"
"""What it is for, and the sizes of the ranks that are whole."""


def work_dir(deployment: Deployment) -> Path:
    """The directory that trtllm-build writes to, next to the engine's."""
    return deployment.engine_dir.with_name("engine.building")


class Work:
    """The directory that the program writes to, and which of its ranks are whole."""

    def __init__(self, deployment: Deployment, checkpoint: Path, purpose: str) -> None:
        self.deployment, self.checkpoint, self.purpose = deployment, checkpoint, purpose
        self.directory = work_dir(deployment)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolkitError(f"cannot be written: {error.strerror}", where=self.directory) from None

    def done(self) -> set[int]:
        """Ranks of an earlier attempt at the same engine. What else is there goes."""
        state = self.directory / STATE
        found = read_json(state) if state.exists() else {}
        sizes = found.get("sizes", {}) if found.get("purpose") == self.purpose else {}
        whole = {int(rank) for rank, size in sizes.items() if _size(self.file(int(rank))) == size}
        if not (self.directory / "config.json").exists():
            whole = set()
        for path in self.directory.iterdir():
            if path != state and path.name != "config.json" and path not in map(self.file, whole):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return whole

    def mark(self, ranks: set[int]) -> None:
        """Remember that these are on disk, to their ends."""
        sizes = {rank: _size(self.file(rank)) for rank in ranks}
        draft = self.directory / (STATE + ".new")
        draft.write_text(json.dumps({"purpose": self.purpose, "sizes": sizes}), encoding="utf-8")
        draft.replace(self.directory / STATE)

    def checkpoint_without(self, done: set[int]) -> Path:
        """A checkpoint with the files of the other ranks only."""
        view = self.directory / "checkpoint"
        view.mkdir()
        names = ["config.json", *(f"rank{r}.safetensors" for r in self.deployment.mapping.ranks if r not in done)]
        for name in names:
            (view / name).symlink_to(self.checkpoint.resolve() / name)
        return view

    def checked_config(self) -> dict[str, Any]:
        """The engine's config.json. Raises ToolkitError when it is not that of the deployment's engine."""
        found = read_json(self.directory / "config.json")
        wanted = self.deployment.engine_options.version
        if found.get("version") != wanted:
            what = f"engine.version: says {wanted}, {PROGRAM} is of TensorRT-LLM {found.get('version')}"
            raise ToolkitError(what, where=self.deployment.file, hint="Correct it, or use the image that holds it.")
        return found

    def hand_over(self, partial: Path) -> None:
        """Move the engine to where it appears."""
        for rank in self.deployment.mapping.ranks:
            self.file(rank).replace(partial / f"rank{rank}.engine")
        shutil.copyfile(self.directory / "config.json", partial / "config.json")

    def file(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.engine"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
