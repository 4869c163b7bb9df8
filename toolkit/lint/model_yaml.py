"""Reads the model.yaml of an `llmapi` model: the arguments of LLM(), and `triton_config` for the model itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.files.yaml_file import compose_yaml, read_yaml
from toolkit.lint.finding import Effect, Finding
from toolkit.releases.llm_api import SECTIONS

MODEL_YAML = "model.yaml"
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
TRITON = "triton_config"
OURS_ONLY = {
    *("eos_token_ids", "ignored_by_sampler", "longest_token_bytes"),
    *("max_active_requests", "max_running_requests", "stats_check_period_ms"),
}
"""Keys of triton_config that NVIDIA's model does not read."""


@dataclass
class ModelYaml:
    """A model.yaml, or why it cannot be read."""

    path: Path
    text: str = ""
    content: dict[str, Any] = field(default_factory=dict)
    problem: Finding | None = None
    """The finding that says why the file cannot be read."""

    @cached_property
    def given(self) -> dict[str, Any]:
        """The arguments by name, with a dot for a key of a section. Null counts as not given."""
        arguments: dict[str, Any] = {key: value for key, value in self.content.items() if key != TRITON}
        for section in SECTIONS:
            if isinstance(arguments.get(section), dict):
                arguments.update({f"{section}.{key}": value for key, value in arguments.pop(section).items()})
        return {name: value for name, value in arguments.items() if value is not None}

    @property
    def triton(self) -> dict[str, Any] | None:
        section = self.content.get(TRITON)
        return section if isinstance(section, dict) else None

    @property
    def ours(self) -> bool:
        """Whether `toolkit repo` wrote it."""
        return bool(OURS_ONLY & set(self.triton or {}))

    @cached_property
    def lines(self) -> dict[str, int]:
        """The line of each key, named as in `given`."""
        import yaml

        def of(node: Any, above: str) -> Iterator[tuple[str, int]]:
            for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
                yield f"{above}{key.value}", key.start_mark.line + 1
                yield from of(value, f"{key.value}.") if not above else ()

        return dict(of(compose_yaml(self.text), "")) if self.content else {}

    def finding(self, kind: str, effect: Effect, what: str, fix: str, at: str | None = None) -> Finding:
        """A finding at the line of the key `at`, or of its section."""
        line = None if at is None else self.lines.get(at) or self.lines.get(at.partition(".")[0])
        return Finding(kind, effect, self.path, what, fix, line)


def model_yaml_of(folder: Path) -> Path | None:
    """The model.yaml of the highest version, which is the one that Triton loads."""
    files = (path for path in folder.glob(f"*/{MODEL_YAML}") if path.parent.name.isdecimal())
    return max(files, key=lambda path: int(path.parent.name), default=None)


def read_model_yaml(folder: Path) -> ModelYaml:
    """Read the model.yaml in a model's folder."""
    path = model_yaml_of(folder)
    if path is None:
        path = folder / "1" / MODEL_YAML
        what = "is missing: LLM() gets no arguments, not even the model"
        fix = "Write it: toolkit repo CONFIG does so. NVIDIA's model reads another file if LLM_CONFIG_PATH names it."
        return ModelYaml(path, problem=Finding("model-yaml", "start", path, what, fix))
    try:
        content = read_yaml(path)
        return ModelYaml(path, path.read_text(encoding="utf-8"), content)
    except ToolkitError as error:
        line = re.search(r":(\d+)$", str(error.where))
        number = int(line[1]) if line else None
        return ModelYaml(path, problem=Finding("model-yaml", "start", path, error.what, "Correct it.", number))
