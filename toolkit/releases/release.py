"""Everything that one release accepts, and how to find the release of a version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from toolkit.errors import ToolkitError, shown
from toolkit.releases.checkpoint import checkpoint_keys
from toolkit.releases.flags import build_flags, removed_flags
from toolkit.releases.images import Image, images
from toolkit.releases.parameters import backend_parameters
from toolkit.releases.setting import Flag, Parameter
from toolkit.releases.tables import NAMES


@dataclass(frozen=True, eq=False)  # there is one of each
class Release:
    """A release by major.minor: what its trtllm-build and its backend accept, and the images that have them.

    Its tables are read when they are first needed.
    """

    name: str
    has_engines: bool = True
    """Without engines all tables are empty."""

    @cached_property
    def images(self) -> tuple[Image, ...]:
        return tuple(images(self.name)) if self.has_engines else ()

    @cached_property
    def build_flags(self) -> Mapping[str, Flag]:
        return build_flags(self.name) if self.has_engines else {}

    @cached_property
    def backend_parameters(self) -> Mapping[str, Parameter]:
        return backend_parameters(self.name) if self.has_engines else {}

    @cached_property
    def model_parameters(self) -> Mapping[str, Mapping[str, Parameter]]:
        from toolkit.releases.models import model_parameters  # which reads tables when it is imported

        return model_parameters(self.name) if self.has_engines else {}

    @cached_property
    def removed_flags(self) -> Mapping[str, str]:
        return removed_flags(self.name) if self.has_engines else {}

    @cached_property
    def checkpoint_keys(self) -> Mapping[str, frozenset[str]]:
        return checkpoint_keys(self.name) if self.has_engines else {}

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions in images, oldest first."""
        return tuple(sorted({image.version for image in self.images}, key=lambda text: [*map(int, text.split("."))]))

    def image(self, version: str) -> Image | None:
        """The newest image with exactly this version: an engine runs under no other version."""
        return next((image for image in self.images if image.version == version), None)


RELEASES: Mapping[str, Release] = MappingProxyType({name: Release(name) for name in NAMES})
"""By name, oldest first."""

LATEST = RELEASES[NAMES[-1]]
WITHOUT_ENGINES = Release("1.3", has_engines=False)
"""What comes after engines: engine: pytorch alone runs on it (toolkit.releases.llm_api)."""


def release_of(version: str, *, where: str | Path | None = None) -> Release:
    """The release for a version of TensorRT-LLM such as "1.2.1" or "1.2". Only major.minor counts.

    Raises ToolkitError, with the supported releases, for any other version; `where` is the file that has the version.
    """
    match = re.fullmatch(r"(\d+\.\d+)(?:[.+]\S+|(?:a|b|rc)\d\S*)?", version)
    if not match or match[1] not in RELEASES:
        raise ToolkitError(
            f"TensorRT-LLM {shown(version)} is not supported",
            where=where,
            hint=f"Use one of {', '.join(RELEASES)}.",
        )
    return RELEASES[match[1]]
