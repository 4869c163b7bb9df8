"""API keys: only hashes are in the file, nobody else reads it, and a key may send so many requests a minute."""

from __future__ import annotations

import hashlib

import pytest

from toolkit.errors import ToolkitError
from toolkit.gateway.keys import RateLimit, name_of, read_keys

KEY = "sk-secret"
LINE = f"anna {hashlib.sha256(KEY.encode()).hexdigest()}"


@pytest.fixture
def keys_file(tmp_path):
    def write(text: str, mode: int = 0o600):
        path = tmp_path / "keys"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def test_a_key_has_its_name(keys_file):
    keys = read_keys(keys_file(f"# ours\n\n{LINE}\n"))
    assert name_of(keys, f"Bearer {KEY}") == "anna"
    for other in ("", KEY, "Bearer ", "Bearer sk-other", f"Basic {KEY}"):
        assert name_of(keys, other) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "names no key"), (f"{LINE}\nanna {KEY}\n", "keys:2: is not a line for a key"), ("anna\n", "keys:1: ")],
)
def test_a_bad_file_is_one_line_that_shows_no_key(keys_file, text, message):
    with pytest.raises(ToolkitError, match=message) as caught:
        read_keys(keys_file(text))
    assert KEY not in str(caught.value)


def test_a_file_that_others_can_read_is_refused(keys_file):
    with pytest.raises(ToolkitError, match=r"can be read by other users. Close it: chmod 600"):
        read_keys(keys_file(LINE, mode=0o640))


def test_no_file(tmp_path):
    with pytest.raises(ToolkitError, match=r"no such file. Make it, with a line for each key: NAME SHA256"):
        read_keys(tmp_path / "keys")


def test_a_minute_s_requests_may_come_at_once_then_evenly():
    now = 0.0
    limit = RateLimit(60, clock=lambda: now)
    assert [limit.take("anna") for _ in range(60)] == [0.0] * 60
    assert limit.take("anna") == pytest.approx(1.0)
    assert limit.take("bert") == 0.0, "each key has its own"
    now = 0.5
    assert limit.take("anna") == pytest.approx(0.5)
    now = 1.5
    assert limit.take("anna") == 0.0
