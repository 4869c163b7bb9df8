"""The docs as a site: it builds, it needs no network, and what is wrong in a page ends the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PARTS = ("docs", "benchmarks", "mkdocs.yml", *OUTSIDE)
MISTAKES = {
    "[a](nowhere.md)": "contains a link 'nowhere.md'",
    "[a](convert.md#nowhere)": "link 'convert.md#nowhere', but the doc 'how-to/convert.md' does not contain an anchor",
    "[a](../../toolkit/nowhere.py)": "links to toolkit/nowhere.py, which does not exist",
    "[a](../../benchmarks/plan.md#nowhere)": "the doc 'benchmarks/plan.md' does not contain an anchor '#nowhere'",
    "![a](nowhere.png)": "contains a link 'nowhere.png'",
}


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_it_builds_loads_nothing_from_the_network_and_links_as_on_a_code_host(tmp_path: Path) -> None:
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
    assert 'href="../benchmarks/verify.html"' in (tmp_path / "how-to/verify.html").read_text()
    assert 'href="../reference/failures.html"' in (tmp_path / "benchmarks/kill_matrix.html").read_text()
    assert "<code>toolkit/releases/llm_api.py</code>" in (tmp_path / "how-to/pytorch.html").read_text()


def test_links_that_lead_nowhere_and_a_page_on_no_shelf_end_the_build(tmp_path: Path) -> None:
    project = tmp_path / "project"  # a copy of the pages, next to the files that they link to
    project.mkdir()
    for path in ROOT.iterdir():
        if path.name in PARTS:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, project / path.name)
        elif not path.name.startswith("."):
            (project / path.name).symlink_to(path)
    page = project / "docs/how-to/build.md"
    page.write_text("\n\n".join([page.read_text(), *MISTAKES]))
    (project / "docs/how-to/forgotten.md").write_text("# Forgotten\n")
    done = build(project, tmp_path / "site")
    assert done.returncode != 0 and done.stderr.count("WARNING -") == len(MISTAKES) + 1, done.stderr
    for message in (*MISTAKES.values(), "how-to/forgotten.md"):
        assert message in done.stderr
