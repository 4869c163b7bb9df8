"""What rate was served is not told by requests over duration alone."""

from __future__ import annotations

import pytest

from tests.slo.samples import failed, sample
from toolkit.config.sections import Slo
from toolkit.slo.metrics import Measured
from toolkit.slo.saturation import SaturationCheck
from toolkit.slo.target import Target
from toolkit.slo.verdict import judge


def test_a_server_that_keeps_up_and_one_that_falls_behind() -> None:
    """10 requests/s for 20 s. One server takes 1 s for each; the other serves 5 a second, the rest wait."""
    steady = SaturationCheck.of(Measured([sample(1000, due=n / 10) for n in range(200)], {}))
    assert steady is not None and not steady.behind and abs(steady.came - steady.ended) <= 1
    queue = SaturationCheck.of(Measured([sample(1000 + n * 100, due=n / 10) for n in range(200)], {}))
    assert queue is not None and queue.behind and queue.ended < 0.6 * queue.came
    late = SaturationCheck.of(Measured([sample(1000, due=n / 10) for n in range(200)], {"ttft_ms": 500}))
    assert late is not None and (late.ended, late.good) == (steady.ended, 0)


def test_whether_a_server_keeps_up_cannot_be_told_of_answers_longer_than_the_test() -> None:
    assert SaturationCheck.of(Measured([sample(9000, due=n / 10) for n in range(20)], {})) is None
    assert SaturationCheck.of(Measured([failed(n) for n in range(20)], {})) is None


def rate_of(samples: list, limit: float) -> Target:
    slo = Slo.model_validate({"requests_per_s": limit})
    verdict = judge(slo, Measured(samples, {}), intervals=True, open_loop=True)
    (found,) = [target for target in verdict.targets if target.name == "requests_per_s"]
    return found


def test_the_drain_is_not_in_the_rate_of_a_server_that_keeps_up() -> None:
    """101 requests in 10 s, each of 4 s: over the 14 s until the last has ended it would be 7.2/s."""
    samples = [sample(4000, due=n / 10) for n in range(101)]
    assert Measured(samples, {}).requests_per_s == pytest.approx(101 / 14)
    found = rate_of(samples, limit=9.5)
    assert (found.outcome, found.measured) == ("PASS", pytest.approx(10)) and "without the final drain" in found.note
    more = rate_of(samples, limit=12)
    assert (more.outcome, more.measured) == ("NOT MEASURED", None)
    assert more.note == "the server kept up with the 10 requests/s that were sent: test at the limit or above"


def test_failures_and_a_queue_are_missed_rates() -> None:
    broken = [failed(n / 10) if n % 5 == 0 else sample(1000, due=n / 10) for n in range(100)]
    assert (rate_of(broken, 9).outcome, rate_of(broken, 9).measured) == ("FAIL", pytest.approx(80 / 10.9))
    queue = [sample(1000 + n * 100, due=n / 10) for n in range(200)]
    assert rate_of(queue, 8).outcome == "FAIL" and rate_of(queue, 8).measured == pytest.approx(200 / 40.8, rel=0.01)


def test_repeats_are_looked_at_one_by_one() -> None:
    runs = [[sample(1000, due=start + n / 10) for n in range(101)] for start in (0, 100)]
    slo = Slo.model_validate({"requests_per_s": 9})
    verdict = judge(slo, Measured.repeated(runs, {}), open_loop=True)
    assert verdict.targets[0].measured == pytest.approx(10)
