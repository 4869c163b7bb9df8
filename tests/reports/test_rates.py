"""What load tests at different rates leave, from trials and samples written by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tests.slo.samples import failed, sample
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import Percentiles, Slo
from toolkit.reports.rates.report import as_markdown, measured_line, write
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.metrics import Measured
from toolkit.slo.rates import RateSeries, RateTest, edge
from toolkit.slo.saturation import SaturationCheck
from toolkit.slo.verdict import judge

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
SLO = Slo(ttft_ms=Percentiles(p50=200, p99=400))


@pytest.fixture
def deployment(tmp_path) -> Deployment:
    return load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path, "slo": SLO})


def trial(rate: float, met: bool | None, ttft_ms: float = 100, broken: int = 0) -> RateTest:
    samples = [sample(ttft_ms, ttft_ms + 20, due=n / rate) for n in range(40)] + [failed() for _ in range(broken)]
    verdict = judge(SLO, Measured(samples, {"ttft_ms": 400}), own=GeneratorError(ttft_ms=AtPercentiles(1, 2)))
    return RateTest.of(verdict, rate, 1, met, "" if met else "TTFT P99", SaturationCheck.of(verdict.measured), None)


def test_the_edge_is_below_what_missed_and_what_is_open() -> None:
    assert edge([trial(2, True), trial(8, False), trial(4, True)]) == (4, 8)
    assert edge([trial(2, True), trial(4, None), trial(8, True)]) == (2, 4)
    assert edge([trial(2, False), trial(4, True)]) == (None, 2)
    assert edge([trial(2, True)]) == (2, None)


def test_what_is_written(deployment) -> None:
    trials = (trial(4, True), trial(8, False, 900), trial(4.4, False, 500, broken=40))
    settings = {"workload": "chat-1k", "arrivals": "poisson", "protocol": "http"}
    found = RateSeries("capacity", trials, 1.7e9, 4.0, 4.4, settings=settings)
    page = write(deployment, found)
    assert page == deployment.output / "rates" / "rates.html"
    text = (deployment.rates_dir / "rates.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert "Infinity" not in text and content["within"] == pytest.approx(0.1)
    assert content["outcome"] == found.line == "capacity 4 requests/s; 4.4 misses them"
    first, over, broken = content["trials"]
    assert (first["rate"], first["met"], first["requests"], first["failed"]) == (4, True, 40, 0)
    assert first["latencies"]["ttft_ms"]["p50"] == pytest.approx(100, abs=0.01)
    assert first["latencies"]["tpot_ms"]["p99"] == pytest.approx(20, abs=0.01)
    assert first["completed_per_s"] == pytest.approx(40 / (39 / 4 + 0.12), rel=1e-4)
    assert first["own"]["ttft_ms"] == {"p50": 1, "p99": 2}
    assert (over["good_share"], over["why"]) == (0.0, "TTFT P99")
    assert broken["latencies"]["ttft_ms"]["p99"] is None and broken["failed"] == 40
    html = page.read_text(encoding="utf-8")
    assert "4 requests/s</strong>" in html and "4.4 requests/s misses them, so the answer is within 10.0 %." in html
    assert html.count('role="img"') == 4 and "∞" in html and "A triangle" in html
    assert not re.search(r'(src|href)="http|<script', html), "it needs nothing but itself"


@pytest.mark.parametrize(
    ("found", "line", "headline"),
    [
        (
            RateSeries("sweep", (trial(2, True), trial(3, True)), 0, 3.0),
            "the latencies are met up to 3 requests/s",
            "3 requests/s",
        ),
        (
            RateSeries("capacity", (trial(2, False),), 0, None, 2.0),
            "no rate meets the latencies, down to 2 requests/s",
            "NO RATE",
        ),
        (
            RateSeries("sweep", (trial(2, None),), 0, None, 2.0, cut_short="cut short in test 2: stopped"),
            "no rate meets the latencies, down to 2 requests/s; cut short in test 2: stopped",
            "CUT SHORT",
        ),
    ],
)
def test_how_it_is_told(deployment, found, line, headline) -> None:
    assert found.line == line
    assert f"<strong>{headline}" in write(deployment, found).read_text(encoding="utf-8")
    assert as_markdown(deployment, found).startswith(f"## llama3-70b-h100-pp4tp2-fp16: {line}\n")


def test_a_trial_says_what_was_measured() -> None:
    assert measured_line(trial(4, True, 110)) == "TTFT P99 110 ms, TPOT P99 20.0 ms, 100.0% inside all limits"
    assert math.isinf(trial(4, False, broken=40).latency("ttft_ms", 99) or 0)
