"""Makes a wheel of this toolkit for an image: no registry has the toolkit, and there may be no clone.

A wheel is a zip file with the package, and its metadata in a folder of its own. The same toolkit gives the same bytes.
Source: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import distribution

_PREFIX = f"{distribution.NAME.replace('-', '_')}-{distribution.VERSION}"
FILE = f"{_PREFIX}-py3-none-any.whl"
BUNDLED = ("build_configs", "loadtest", "triton_repo", "tests/fixtures/tiny-llama")
"""As [tool.hatch.build.targets.wheel.force-include] in pyproject.toml."""
METADATA = ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE")
TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can hold."""


@functools.cache  # the same for all folders that a process writes or compares
def wheel() -> bytes:
    """The bytes of the wheel. Raises ToolkitError if the toolkit runs from a folder without having been installed."""
    content = {**dict(_package()), **_metadata()}
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items())
    content[f"{_PREFIX}.dist-info/RECORD"] = f"{record}{_PREFIX}.dist-info/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _package() -> Iterator[tuple[str, bytes]]:
    for path in _files(distribution.PACKAGE):
        name = path.relative_to(distribution.PACKAGE)
        if name.parts[0] != "bundled":  # written below, also for a clone, which has no metadata
            yield str("toolkit" / name), path.read_bytes()
    for folder in BUNDLED:
        source = distribution.folder(folder)
        for path in _files(source):
            yield str(Path("toolkit/bundled", folder, path.relative_to(source))), path.read_bytes()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _metadata() -> dict[str, bytes]:
    try:
        installed = importlib.metadata.distribution(distribution.NAME)
    except importlib.metadata.PackageNotFoundError:
        hint = "Install it: pip install -e . in its clone."
        raise ToolkitError("the toolkit is not installed, so it cannot be put into an image", hint=hint) from None
    texts = {name: installed.read_text(name) for name in METADATA}
    return {f"{_PREFIX}.dist-info/{name}": text.encode() for name, text in texts.items() if text}


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
