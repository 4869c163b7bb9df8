"""Prints the test folders of some rooms and of their neighbours: `python -m tests.neighbours slo`.

A room's neighbours are the rooms that import it directly, also inside a function. `make test ONLY=slo` runs this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import grimp

TESTS = Path(__file__).parent
PACKAGE = "toolkit"


def rooms_of(graph: grimp.ImportGraph) -> set[str]:
    """The names under `toolkit`: folders, and modules that are in none."""
    return {child.removeprefix(f"{PACKAGE}.") for child in graph.find_children(PACKAGE)} - {"__main__"}


def neighbours(graph: grimp.ImportGraph, room: str) -> set[str]:
    """The rooms with a module that imports one of this room's."""
    inside = {f"{PACKAGE}.{room}", *graph.find_descendants(f"{PACKAGE}.{room}")}
    importers = {name for module in inside for name in graph.find_modules_that_directly_import(module)}
    return {name.split(".")[1] for name in importers if "." in name} - {room}


def tests_of(room: str) -> Iterator[Path]:
    """Where a room's tests are. Some have none of their own: their neighbours' tests go through them."""
    candidates = (TESTS / room, TESTS / f"test_{room}.py")
    return (path for path in candidates if path.exists())


def main(names: list[str]) -> int:
    """Print the paths. Returns 1 for a name that is neither a room nor a folder of tests."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    rooms, chosen = rooms_of(graph), set()
    for name in names:
        if name in rooms:
            chosen |= {name, *neighbours(graph, name)}
        elif (TESTS / name).is_dir():
            chosen.add(name)
        else:
            print(f"{name!r} is not a room. Use one of {', '.join(sorted(rooms))}", file=sys.stderr)
            return 1
    paths = [path for name in sorted(chosen) for path in tests_of(name)]
    print(*(path.relative_to(TESTS.parent) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
