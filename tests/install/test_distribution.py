"""The name, extras and folders of the project agree with its pyproject.toml, its pages and its messages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.commands import toolkit
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.files import distribution

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


def test_the_name_is_that_of_the_project() -> None:
    assert PROJECT["name"] == distribution.NAME


def test_every_extra_that_code_and_pages_name_is_there() -> None:
    wheel = f"{distribution.NAME.replace('-', '_')}-{distribution.VERSION}-py3-none-any.whl"
    code = "\n".join(path.read_text() for path in ROOT.glob("toolkit/**/*.py"))
    named = set(re.findall(r"""(?:install|require)\(["'](\w+)["']""", code))
    for page in PAGES:
        found = re.findall(r"([\w.-]*)\[(\w+)\]'", page.read_text())
        named |= {extra for _, extra in found}
        assert {name for name, _ in found} <= {distribution.NAME, wheel, "."}, page
    assert {"convert", "rehearsal", "loadtest", "verify"} <= named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", ["triton_repo", "loadtest", "build_configs"])
def test_a_folder_is_found_next_to_the_package_and_inside_it(name, tmp_path, monkeypatch) -> None:
    assert distribution.folder(name) == ROOT / name
    inside = tmp_path / "bundled" / name
    inside.mkdir(parents=True)
    monkeypatch.setattr(distribution, "PACKAGE", tmp_path)
    assert distribution.folder(name) == inside


def test_nothing_is_written_into_the_installed_package(tmp_path, monkeypatch) -> None:
    example = tmp_path / "bundled/build_configs/smollm2-rehearsal.yaml"
    example.parent.mkdir(parents=True)
    example.write_text((ROOT / "build_configs" / example.name).read_text())
    monkeypatch.setattr("toolkit.config.rules.PACKAGE", tmp_path)
    with pytest.raises(ToolkitError, match=r"inside the installed package.*toolkit sample configs build_configs"):
        load_deployment(example)
    elsewhere = tmp_path.with_name("elsewhere")
    assert load_deployment(example, changes={"output": str(elsewhere)}).output == elsewhere


def test_examples_are_copied_and_what_is_there_is_kept(tmp_path) -> None:
    folder = tmp_path / "build_configs"
    assert toolkit("sample", "configs", folder).stderr == "written\n"
    assert {path.name for path in folder.iterdir()} == {path.name for path in (ROOT / folder.name).glob("*.yaml")}
    mine = folder / "smollm2-rehearsal.yaml"
    mine.write_text("engine: rehearsal\n")
    (folder / "tiny-llama-rehearsal.yaml").unlink()
    assert toolkit("sample", "configs", folder).stderr == "written\n"
    assert mine.read_text() == "engine: rehearsal\n" and (folder / "tiny-llama-rehearsal.yaml").is_file()
    assert toolkit("sample", "configs", folder).stderr == "already there; nothing to do\n"


def test_where_examples_cannot_be_written(tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    done = toolkit("sample", "workloads", tmp_path / "taken")
    taken = tmp_path / "taken"
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {taken}: cannot be written: File exists. Give another directory.\n",
    )
