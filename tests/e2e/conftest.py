from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .group import Group, succeed, write_yaml
from .truth import Truth

SHAPES = {1: (1, 1), 4: (2, 2), 8: (2, 4)}
"""Ranks: (tp, pp)."""


@pytest.fixture(scope="session")
def truth(tiny_llama: Path) -> Truth:
    return Truth(tiny_llama)


@pytest.fixture(scope="package")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path):
    """A group of `request.param` ranks. Tests of one size share it, and pytest runs them one after the other.

    With 0 no group is served meanwhile: for tests that start their own.
    """
    if not request.param:
        yield None
        return
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    file = write_yaml(folder, tiny_llama, *SHAPES[request.param])
    for name in ("build", "repo", "serve --detach"):
        succeed(name, file)
    try:
        yield Group(file)
    finally:
        succeed("stop", file)


@pytest.fixture
def group(served: Group) -> Iterator[Group]:
    """The served group, which must be well again after each test."""
    yield served
    served.assert_well()
