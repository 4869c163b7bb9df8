"""How much time a request has left."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from toolkit.client import DeadlineExceeded, base


def test_the_time_left_is_never_negative(monkeypatch):
    """The limit may pass between any two looks at the clock. Sockets take no negative timeout."""
    looks = count()
    monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter=lambda: 0.6 * next(looks)))
    limit = base.TimeLimit("here", 1.0, 9.0, _start=0.0)
    assert next(looks) == 0  # the next look is at 0.6 s
    assert limit.left() == pytest.approx(0.4)
    with pytest.raises(DeadlineExceeded):
        limit.left()
