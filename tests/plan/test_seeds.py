"""Intervals from several seeds, two digits, and what is said of an overload: in the text, as JSON, on the page."""

import json
import math

import pytest
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.plan.predict import UNSTEADY, predict
from toolkit.plan.seeds import SEEDS, WITHIN, figures_of, spread_of, with_intervals
from toolkit.plan.show import wording
from toolkit.plan.show.page import page
from toolkit.slo.target import Target

SHORT = {"parallel": {"tp": 8, "pp": 1}, "slo": {"ttft_ms": {"p99": 1500}, "requests_per_s": 8}}
WORKLOAD = {"rate": 8, "requests": 120, "output_tokens": 16}


@pytest.fixture(scope="module")
def overloaded(flagship_compared):
    """The flagship: 8 requests/s come, and fewer are served."""
    return flagship_compared.own.prediction


def test_an_interval_is_the_lowest_and_the_highest_of_all_seeds(flagship):
    file = flagship(**SHORT, workload=WORKLOAD)
    found = spread_of(predict(load_deployment(file)))
    runs = [predict(load_deployment(file, changes={"workload.seed": seed})) for seed in range(SEEDS)]
    p99 = [figures_of(one)["ttft_ms.p99"] for one in runs]
    assert found.figures["ttft_ms.p99"] == (min(p99), max(p99)) and min(p99) < max(p99)
    rates = [one.capacity.highest for one in runs]
    assert found.highest == pytest.approx((min(rates), max(rates)), rel=0.07)  # each search is right to 3 %


def test_nothing_is_left_to_chance_at_equal_intervals(flagship):
    assert spread_of(predict(load_deployment(flagship(**SHORT, workload={**WORKLOAD, "arrivals": "constant"})))) is None


def test_a_limit_between_the_seeds_is_said():
    target = Target("ttft_ms.p99", "TTFT P99", "ms", "≤", 100.0, 99.0, True, 0.01)

    class Given:
        def of(self, name):
            return (90.0, 110.0)

    (found,) = with_intervals([target], Given())
    assert found.interval == (90.0, 110.0) and found.note == WITHIN


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (17_447, None, "17,000"),
        (228.4, None, "230"),
        (4.98, None, "5.0"),
        (0.1234, None, "0.12"),
        (0, None, "0"),
        (1503, 1500, "1,503"),  # 1,500 would look like a limit that is met
        (1497, 1500, "1,500"),
        (1530, 1500, "1,530"),
        (math.inf, None, "never"),
        (None, None, "–"),
    ],
)
def test_two_digits_and_more_where_the_limit_is_near(value, limit, text):
    assert wording.number(value, limit) == text


def test_an_overload_has_no_ttft(overloaded):
    found = overloaded.overload
    assert found.arrivals == 8 and 5 < found.served < 7.5
    targets = {target.name: target for target in overloaded.targets}
    assert targets["ttft_ms.p99"].measured == math.inf and targets["ttft_ms.p99"].note == UNSTEADY
    assert targets["compliance"].measured == 0 and targets["compliance"].passed is False
    assert math.isfinite(targets["tpot_ms.p50"].measured)


def test_an_overload_in_words(overloaded):
    """8 come; what is served and what the queue grows by are together 8, and 256 places fill at that pace."""
    growth = overloaded.overload.growth
    text = wording.overload(overloaded)
    assert text.startswith(f"8.0 requests/s arrive and {wording.number(8 - growth)} are served: no steady state.")
    assert f"Its 256 places are full after {wording.number(256 / growth)} s" in text
    html = page(overloaded, None)
    assert "TTFT P99, no steady state" in html and f"{UNSTEADY}</span>" in html


@pytest.mark.thorough
@pytest.mark.usefixtures("remembered")
def test_an_overload_as_text_and_json(flagship):
    file = str(flagship(workload={"rate": 40, "requests": 300, "output_tokens": 16}))
    ran = [CliRunner().invoke(cli, ["plan", file, *more]).stdout for more in ((), ("--json",))]
    rows = {line.split("  ")[0]: line for line in ran[0].splitlines()}
    assert "no steady state" in rows["TTFT"] and "no steady state" in rows["End-to-end"]
    assert "no steady state" not in rows["TPOT"] and "40 requests/s arrive and" in rows["overload"]
    found = json.loads(ran[1])["prediction"]
    assert found["steady_state"] is False and found["metrics"]["ttft_ms"]["p50"] is None
    assert found["metrics"]["tpot_ms"]["p50"] > 0 and found["overload"]["arrivals"] == 40
