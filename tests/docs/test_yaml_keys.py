"""docs/reference/deployment.md has every key of a deployment's YAML, with its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from toolkit.config.deployment import Deployment
from toolkit.config.sections import Percentiles, Section

PAGE = (Path(__file__).parents[2] / "docs/reference/deployment.md").read_text()
ELSEWHERE = ("file", "replica", "engine_given", "workload")
"""What no YAML gives, and what has its own page."""


def section_in(annotation: Any) -> type[Section] | None:
    """The section of a field, also of one that may be None; None for a value or for limits by percentile."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section) and kind is not Percentiles:
            return kind
    return None


def keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key as `limits.max_sequences`, with its default."""
    for name, field in section.model_fields.items():
        if prefix == "" and name in ELSEWHERE:
            continue
        full = prefix + name.replace("engine_options", "engine")
        inner = section_in(field.annotation)
        yield from keys(inner, f"{full}.") if inner else [(full, field.default)]


def rows() -> dict[str, str]:
    """The default that the page says, by key."""
    listed = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        section = re.match(r"`(\w+)`\n", part)
        prefix = f"{section[1]}." if section else ""
        for names, shown in re.findall(r"^\| (`.*?`) \| (.*?) ?\| ", part, re.MULTILINE):
            named = re.findall(r"`([\w.]+)`", names)
            defaults = shown.replace("`", "").split(", ") if "," in shown else [shown.replace("`", "")] * len(named)
            listed |= dict(zip((prefix + name for name in named), defaults, strict=True))
    return listed


def test_every_key_is_on_the_page_with_its_default() -> None:
    listed, expected = rows(), dict(keys(Deployment))
    assert {*expected} | {"engine.kind"} == {*listed}
    for key, default in expected.items():
        if isinstance(default, bool | int | float | str):
            assert listed[key] == str(default).lower(), key
