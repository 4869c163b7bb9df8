"""Files appear whole, or not at all."""

from __future__ import annotations

import resource

import pytest

from toolkit.errors import ToolkitError
from toolkit.files.atomic import write_text


def test_a_file_and_its_permissions(tmp_path):
    file = tmp_path / "state.json"
    write_text(file, "ä", mode=0o600)
    assert file.read_bytes() == b"\xc3\xa4" and file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def little_room():
    """Files of at most 8 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, little_room):
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(ToolkitError, match=r"page.html: could not be written: File too large"):
        write_text(file, "much longer than before")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
