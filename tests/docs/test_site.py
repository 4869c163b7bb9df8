"""The docs as a site: it builds, it needs no network, and what is wrong in a page ends the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PARTS = ("docs", "benchmarks", "mkdocs.yml", *OUTSIDE)


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the pages, which a test may damage, next to the files that they link to."""
    project = tmp_path / "project"
    project.mkdir()
    for path in ROOT.iterdir():
        if path.name in PARTS:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, project / path.name)
        elif not path.name.startswith("."):
            (project / path.name).symlink_to(path)
    return project


def test_it_builds_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = [page for page in tmp_path.rglob("*.html") if page.name != "404.html"]
    sources = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *OUTSIDE]
    assert len(pages) == len(sources)
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]*)\"", page.read_text())
        loaded += re.findall(r"<link[^>]* href=\"([^\"]*)\"", page.read_text())
        assert loaded and not [address for address in loaded if "//" in address], page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text()), style


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a](nowhere.md)", "contains a link 'nowhere.md'"),
        ("[a](convert.md#nowhere)", "does not contain an anchor '#nowhere'"),
        ("[a](../../toolkit/nowhere.py)", "links to toolkit/nowhere.py, which does not exist"),
        ("[a](../../benchmarks/plan.md#nowhere)", "does not contain an anchor '#nowhere'"),
        ("![a](nowhere.png)", "contains a link 'nowhere.png'"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(project: Path, tmp_path: Path, text: str, message: str) -> None:
    page = project / "docs/how-to/build.md"
    page.write_text(f"{page.read_text()}\n{text}\n")
    done = build(project, tmp_path / "site")
    assert done.returncode != 0 and message in done.stderr


def test_a_page_on_no_shelf_ends_the_build(project: Path, tmp_path: Path) -> None:
    (project / "docs/how-to/forgotten.md").write_text("# Forgotten\n")
    done = build(project, tmp_path / "site")
    assert done.returncode != 0 and "how-to/forgotten.md" in done.stderr


def test_a_link_works_on_the_site_as_on_a_code_host(project: Path, tmp_path: Path) -> None:
    page = project / "docs/how-to/build.md"
    links = "[p](../../benchmarks/plan.md) [f](../../toolkit/errors.py) [s](../../docs/style.md)"
    page.write_text(f"{page.read_text()}\n{links}\n")
    assert build(project, tmp_path / "site").returncode == 0
    html = (tmp_path / "site/how-to/build.html").read_text()
    assert '<a href="../benchmarks/plan.html">p</a> f (<code>toolkit/errors.py</code>)' in html
    assert '<a href="../style.html">s</a>' in html
