"""The steady clock in seconds since the Unix epoch: the same in processes that a busy machine stops now and then."""

from __future__ import annotations

from itertools import count

import pytest

from toolkit.clock import READINGS, measure_epoch


@pytest.mark.parametrize("stopped", [{0}, {1}, {2}, set(range(3 * READINGS - 6))])
def test_a_process_that_is_stopped_while_it_reads_has_the_same_epoch(stopped) -> None:
    """At 1,000 s of the wall clock the steady clock is 0. A call takes 1 us, or 7 ms where the process is stopped."""
    moment, calls = 5.0, count()

    def steady() -> float:
        nonlocal moment
        moment += 7e-3 if next(calls) in stopped else 1e-6
        return moment

    assert measure_epoch(lambda: 1000 + steady(), steady) == pytest.approx(1000, abs=2e-6)
