"""Hooks of mkdocs: pages outside of docs/ join the site, and links to other files of the repository become names.

A page links as it does on a code host: `../../benchmarks/plan.md`, `../../toolkit/releases/flags.py`. The site has no
source code, so it shows the path of such a file instead. A link to a file that does not exist is a warning, which
`mkdocs build --strict` fails for.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = ("benchmarks/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
LOG = logging.getLogger("mkdocs.plugins.outside_pages")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside of docs/."""
    for page in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, str(page.relative_to(ROOT)), abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Points links between docs/ and the pages outside of it at each other; names the files that are not pages."""
    source = Path(page.file.abs_src_path).relative_to(ROOT)

    def rewritten(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = os.path.normpath(source.parent / target)
        in_site = path.removeprefix("docs/")
        if files.get_file_from_path(in_site):
            here = Path(page.file.src_uri).parent
            return f"[{text}]({os.path.relpath(in_site, here)}{anchor})"
        if path.startswith("docs/"):
            return link[0]  # mkdocs checks these
        if not (ROOT / path).exists():
            LOG.warning("%s links to %s, which does not exist", source, path)
        return f"`{path}`" if Path(path).name in text else f"{text} (`{path}`)"

    return LINK.sub(rewritten, markdown)
