"""model.yaml of an `llmapi` model: what LLM() is told, and under `triton_config` what it is not."""

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
    *("eos_token_ids", "longest_token_bytes"),
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
    """Why it cannot be read."""

    @cached_property
    def given(self) -> dict[str, Any]:
        """The arguments by name, with a dot for a key of a section. One that is null is not given."""
        found: dict[str, Any] = {key: value for key, value in self.content.items() if key != TRITON}
        for section in SECTIONS:
            if isinstance(found.get(section), dict):
                found.update({f"{section}.{key}": value for key, value in found.pop(section).items()})
        return {name: value for name, value in found.items() if value is not None}

    @property
    def triton(self) -> dict[str, Any] | None:
        found = self.content.get(TRITON)
        return found if isinstance(found, dict) else None

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
        """About the line of the key `at`, or of its section."""
        line = None if at is None else self.lines.get(at) or self.lines.get(at.partition(".")[0])
        return Finding(kind, effect, self.path, what, fix, line)


def model_yaml_of(folder: Path) -> Path | None:
    """That of the version which Triton loads, the highest."""
    found = (path for path in folder.glob(f"*/{MODEL_YAML}") if path.parent.name.isdecimal())
    return max(found, key=lambda path: int(path.parent.name), default=None)


def read_model_yaml(folder: Path) -> ModelYaml:
    """Of a model's folder."""
    path = model_yaml_of(folder)
    if path is None:
        path = folder / "1" / MODEL_YAML
        what = "is not there: LLM() is told nothing, not even the model"
        fix = "Write it: toolkit repo CONFIG does. NVIDIA's model reads another if LLM_CONFIG_PATH names it."
        return ModelYaml(path, problem=Finding("model-yaml", "start", path, what, fix))
    try:
        content = read_yaml(path)
        return ModelYaml(path, path.read_text(encoding="utf-8"), content)
    except ToolkitError as error:
        line = re.search(r":(\d+)$", str(error.where))
        number = int(line[1]) if line else None
        return ModelYaml(path, problem=Finding("model-yaml", "start", path, error.what, "Correct it.", number))
