"""What the pages say is there: the files that they name, the commands and their options, and the links between them."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from toolkit.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = "docs/reference/cli.md"
MOST_WORDS = 1550


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/") and name != GENERATED])
def test_a_page_holds_one_thought(name: str) -> None:
    words = len(re.findall(r"\S*\w\S*", (ROOT / name).read_text()))
    assert words <= MOST_WORDS, f"{words} words: split the page by thought, or cut it"


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_options_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    code = re.findall(r"^(?:    |\$ )(.*)$", text, re.MULTILINE)
    code += [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    code += re.findall(r"`([^`]*)`", text)
    lines = [match.groups() for line in code if (match := re.match(r"toolkit ([a-z][a-z-]*)(.*)", line, re.DOTALL))]
    for command, rest in lines:
        assert command in COMMANDS, f"toolkit {command}"
        parameters = cli.get_command(click.Context(cli), command).params
        options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.partition(" #")[0]):
            assert option in options | {"--help"}, f"toolkit {command} {option}"


def test_the_index_leads_to_every_page() -> None:
    listed = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)", text("index.md"))}
    assert {*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")} - listed == {ROOT / "docs/index.md"}


def test_pages_that_code_names_exist() -> None:
    named = 0
    files = [ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in ("toolkit", "loadtest", "triton_repo", "build_configs", "benchmarks"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    for file in files:
        for page in re.findall(
            r"(?<![\w/])docs/(?:start|how-to|reference|why)/[\w-]+\.\w+|docs/\w+\.md", file.read_text()
        ):
            named += 1
            assert (ROOT / page).is_file(), f"{file.relative_to(ROOT)}: {page}"
    assert named > 20


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(
        r"`((?:toolkit|tests|build_configs|triton_repo|loadtest)/[\w/.*-]*)`", text("why/architecture.md")
    )
    assert len(named) > 5
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))), path


def test_rooms_and_files_of_the_tour_exist() -> None:
    """An item of the tour names rooms (`config/`), and then files that are in one of them (`rules.py`)."""
    items = re.split(r"^\d+\. ", text("why/tour.md"), flags=re.MULTILINE)[1:]
    named = 0
    toured = set()
    for item in items:
        quoted = re.findall(r"`([\w/*.-]+)`", item)
        rooms = [name.rstrip("/") for name in quoted if name.endswith("/")]
        parents = [ROOT, ROOT / "toolkit", *(ROOT / "toolkit" / room for room in rooms)]
        for room in rooms:
            assert any((parent / room).is_dir() for parent in parents), f"{room}/: {item}"
        folders = [ROOT, ROOT / "toolkit", *(parent / room for parent in parents for room in rooms)]
        for name in (name for name in quoted if name.endswith((".py", ".yaml"))):
            assert any(list(folder.glob(name)) for folder in folders), f"{name}: {item}"
            named += 1
        toured |= set(rooms)
    assert named > 50
    assert {room.parent.name for room in (ROOT / "toolkit").glob("*/__init__.py")} <= toured


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()
