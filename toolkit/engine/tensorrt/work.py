"""The directory next to the engine's that `trtllm-build` writes to. It stays when a build is interrupted."""

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
"""The file with the purpose of the build, and the sizes of the ranks that are whole."""


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
        """Ranks that an earlier attempt at the same engine has finished. Deletes everything else."""
        file = self.directory / STATE
        state = read_json(file) if file.exists() else {}
        sizes = state.get("sizes", {}) if state.get("purpose") == self.purpose else {}
        whole = {int(rank) for rank, size in sizes.items() if _size(self.file(int(rank))) == size}
        if not (self.directory / "config.json").exists():
            whole = set()
        for path in self.directory.iterdir():
            if path != file and path.name != "config.json" and path not in map(self.file, whole):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return whole

    def mark(self, ranks: set[int]) -> None:
        """Remember that these ranks are on disk, whole."""
        sizes = {rank: _size(self.file(rank)) for rank in ranks}
        draft = self.directory / (STATE + ".new")
        draft.write_text(json.dumps({"purpose": self.purpose, "sizes": sizes}), encoding="utf-8")
        draft.replace(self.directory / STATE)

    def checkpoint_without(self, done: set[int]) -> Path:
        """A checkpoint with only the files of the other ranks."""
        view = self.directory / "checkpoint"
        view.mkdir()
        names = ["config.json", *(f"rank{r}.safetensors" for r in self.deployment.mapping.ranks if r not in done)]
        for name in names:
            (view / name).symlink_to(self.checkpoint.resolve() / name)
        return view

    def checked_config(self) -> dict[str, Any]:
        """The engine's config.json. Raises ToolkitError if another release than the deployment's wrote it."""
        config = read_json(self.directory / "config.json")
        if config.get("version") != self.deployment.engine_options.version:
            raise another_release(self.deployment, config.get("version"))
        return config

    def hand_over(self, partial: Path) -> None:
        """Move the files of the engine into `partial`."""
        for rank in self.deployment.mapping.ranks:
            self.file(rank).replace(partial / f"rank{rank}.engine")
        shutil.copyfile(self.directory / "config.json", partial / "config.json")

    def file(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.engine"


def another_release(deployment: Deployment, version: object) -> ToolkitError:
    """The error for a trtllm-build that is not of the release in the YAML."""
    wanted = deployment.engine_options.version
    what = f"engine.version: says {wanted}, but {PROGRAM} is TensorRT-LLM {version}"
    return ToolkitError(what, where=deployment.file, hint=f"Correct it, or use the image with {wanted}.")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
