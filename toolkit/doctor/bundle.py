"""One file with all that tells why a deployment runs or does not, to send to somebody who can help.

Its contents are a list of names, each made or read when its turn comes (bundle_contents.py): what the machine's own
tools print, and what the stages and runs wrote about themselves. What cannot be had is named in MANIFEST.json with the
reason, and stops nothing. Weights and tokenizers are not on the list; secrets are taken out of every text
(toolkit/secrecy.py).
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
    """What was written: `files` has a record of each file in it, `missing` why another is not, by name."""

    path: Path
    files: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def as_data(self) -> dict[str, Any]:
        return {"path": str(self.path), "size": self.size, "files": self.files, "missing": self.missing}


def write_bundle(diagnosis: Diagnosis, target: Path | None = None) -> Bundle:
    """Write it, to a file named after the deployment and the time unless one is given.

    Raises ToolkitError when the file cannot be written; nothing is left then.
    """
    now = time.time()
    bundle = Bundle(target or _default(diagnosis, now))
    if not bundle.path.name.endswith(SUFFIX):
        hint = f"Write CONFIG before --bundle, and a FILE{SUFFIX} behind it or none."
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
        except Exception as error:  # whatever is wrong with one is what the bundle is for: it keeps the others
            told = error.what if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
            bundle.missing[name] = scrub.text(told)
            continue
        add(name, text)
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now))
    add(MANIFEST, _json({"made": made, "files": bundle.files, "missing": bundle.missing}))


def _sources(diagnosis: Diagnosis) -> Iterator[Source]:
    yield from machine_sources(diagnosis)
    if diagnosis.deployment is not None:
        yield from deployment_sources(diagnosis.deployment)


def _scrubbed(content: Any, scrub: Scrubber) -> str:
    """Text as text, and data, whose strings are scrubbed one by one, as JSON."""
    return scrub.text(content) if isinstance(content, str) else _json(scrub.data(content))


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
