"""Writes one file with all that explains why a deployment runs or does not, to send to someone who can help.

bundle_contents.py lists its contents: the output of the machine's own tools, and what the stages and runs wrote about
themselves. A part that cannot be read is named in MANIFEST.json with the reason, and the others are still written.
Weights and tokenizers are not on the list. Secrets are removed from every text (toolkit/secrecy.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.doctor.bundle_contents import Source, deployment_sources, machine_sources
from toolkit.errors import ToolkitError
from toolkit.files.atomic import atomic_file
from toolkit.secrecy import Scrubber

if TYPE_CHECKING:
    from toolkit.doctor import Diagnosis

SUFFIX = ".tar.gz"
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written. `files` has a record of each file; `missing` says why others are not in it."""

    path: Path
    files: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def as_data(self) -> dict[str, Any]:
        return {"path": str(self.path), "size": self.size, "files": self.files, "missing": self.missing}


def write_bundle(diagnosis: Diagnosis, target: Path | None = None) -> Bundle:
    """Write a bundle to `target`, or to a file named after the deployment and the time.

    Raises ToolkitError when the file cannot be written; then no part of it is left.
    """
    now = time.time()
    bundle = Bundle(target or _default(diagnosis, now))
    if not bundle.path.name.endswith(SUFFIX):
        hint = f"Write CONFIG before --bundle, and after it a FILE{SUFFIX} or nothing."
        raise ToolkitError(f"--bundle: expected a name that ends in {SUFFIX}", where=bundle.path, hint=hint)
    if bundle.path.is_dir():
        raise ToolkitError("--bundle: is a directory, expected a file", where=bundle.path)
    with atomic_file(bundle.path) as partial:
        partial.chmod(0o600)
        try:
            with tarfile.open(partial, "w:gz") as archive:
                _fill(archive, bundle, diagnosis, now)
        except OSError as error:
            raise ToolkitError(f"could not be written: {error.strerror}", where=bundle.path) from None
    return bundle


def _default(diagnosis: Diagnosis, now: float) -> Path:
    name = diagnosis.deployment.name if diagnosis.deployment else "machine"
    return Path(f"{name}-bundle-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}{SUFFIX}")


def _fill(archive: tarfile.TarFile, bundle: Bundle, diagnosis: Diagnosis, now: float) -> None:
    folder, scrub = bundle.path.name.removesuffix(SUFFIX), Scrubber(os.environ)

    def add(name: str, text: str) -> None:
        content = text.encode("utf-8", errors="backslashreplace")
        member = tarfile.TarInfo(f"{folder}/{name}")
        member.size, member.mtime, member.mode = len(content), int(now), 0o644
        archive.addfile(member, io.BytesIO(content))
        record = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        bundle.files.append(record)

    for name, source in _sources(diagnosis):
        name = scrub.text(name)
        try:
            text = _scrubbed(source(), scrub)
        except Exception as error:  # a bundle is for machines where things fail: the other parts are still written
            reason = error.what if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
            bundle.missing[name] = scrub.text(reason)
            continue
        add(name, text)
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now))
    add(MANIFEST, _json({"made": made, "files": bundle.files, "missing": bundle.missing}))


def _sources(diagnosis: Diagnosis) -> Iterator[Source]:
    yield from machine_sources(diagnosis)
    if diagnosis.deployment is not None:
        yield from deployment_sources(diagnosis.deployment)


def _scrubbed(content: Any, scrub: Scrubber) -> str:
    """Text as it is, and data as JSON; without secrets."""
    return scrub.text(content) if isinstance(content, str) else _json(scrub.data(content))


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
