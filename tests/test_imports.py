"""No circle of imports, between files or between rooms. An import inside a function counts as one."""

from __future__ import annotations

import graphlib
from collections.abc import Callable

import grimp
import pytest

GRAPH = grimp.build_graph("toolkit", exclude_type_checking_imports=True, cache_dir=None)


def file(module: str) -> str:
    return module


def room(module: str) -> str:
    """toolkit.engine for toolkit.engine.tensorrt.build, toolkit.errors for itself."""
    return ".".join(module.split(".")[:2])


def imports(graph: grimp.ImportGraph, of: Callable[[str], str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {of(module): set() for module in graph.modules}
    for module in graph.modules:
        found[of(module)] |= {of(other) for other in graph.find_modules_directly_imported_by(module)} - {of(module)}
    return found


@pytest.mark.parametrize("of", [file, room])
def test_there_is_no_circle(of):
    graphlib.TopologicalSorter(imports(GRAPH, of)).prepare()  # CycleError names the circle


def test_imports_inside_functions_count():
    assert "toolkit.engine.tensorrt.plan" in imports(GRAPH, file)["toolkit.engine"]
    graph = grimp.build_graph("toolkit", exclude_type_checking_imports=True, cache_dir=None)
    graph.add_import(importer="toolkit.engine.tensorrt.plan", imported="toolkit.engine")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports(graph, file)).prepare()
