"""What a running load test shows of itself, from samples made by hand."""

from __future__ import annotations

import json

import pytest

from toolkit.errors import ToolkitError
from toolkit.load.live import POINTS, Live
from toolkit.load.options import RunOptions
from toolkit.load.progress import line
from toolkit.slo.sample import Sample

LIMITS = {"ttft_ms": 250.0}


def ended(number: int, ttft_ms: float = 200, error: str | None = None) -> Sample:
    """11 tokens, the first when `ttft_ms` are over and one each 20 ms after it."""
    first = 100 + ttft_ms / 1e3
    times = tuple(first + 0.02 * token for token in range(11))
    return Sample(f"load-{number}", "http", 100, 100, times[-1], times, first_text=first, error=error)


def test_the_line_of_a_terminal_and_what_it_leaves_out_where_it_is_narrow():
    live = Live(40, 1, LIMITS)
    for number in range(8):
        live.add(ended(number, ttft_ms=200 + number), at=number / 2)
    live.add(ended(8, ttft_ms=300), at=4)
    live.add(ended(9, error="broken"), at=4)
    shown = line(live.now(5, in_flight=3))
    assert shown == (
        "10/40 in 5 s, 15 s left, 1 failed, TTFT P50 204 P99 293 ms, TPOT P50 20.0 ms, 80 % inside limits, "
        "20 tokens/s, 3 in flight"
    ), "P99 of 200 ... 207 and 300 is 0.92 of the way from 207 to 300; 9 answers of 11 tokens in 5 s are 19.8 tokens/s"
    assert line(live.now(5, 3), width=40) == "10/40 in 5 s, 15 s left, 1 failed"
    assert line(Live(40, 1, LIMITS).now(0.5, 4)) == "0/40 in 0 s, 4 in flight"
    assert line(live.now(105, 3)).startswith("10/40 in 1:45 min, 5:15 min left")


def test_only_the_last_seconds_count_for_rates_and_latencies():
    live = Live(1000, 1, LIMITS)
    for number in range(100):
        live.add(ended(number, ttft_ms=900), at=1)
    for number in range(100, 120):
        live.add(ended(number, ttft_ms=200), at=15)
    now = live.now(20, None)
    assert (now.ttft_p50, now.ttft_p99, now.tpot_p50) == pytest.approx((200, 200, 20))
    assert (now.done_per_s, now.good_per_s, now.tokens_per_s) == (2, 2, 22)
    assert (now.recent_share, now.good_share) == (1, 20 / 120)
    later = live.now(60, None)
    assert later.done_per_s == 0 and later.recent_share is None
    assert later.ttft_p50 == pytest.approx(200), "a slow server's latest answers stay"


def test_charts_of_a_long_test_stay_small_and_keep_its_beginning_and_end():
    live = Live(10, 1, LIMITS)
    for second in range(3 * POINTS):
        live.mark(live.now(float(second), None))
    live.mark(live.now(3 * POINTS + 0.1, None), last=True)
    times = [point.elapsed_s for point in live.points]
    assert POINTS / 2 < len(times) <= POINTS
    assert (times[0], times[-1]) == (0, 3 * POINTS + 0.1) and times == sorted(times)


def test_conversations_are_over_with_their_last_turn():
    live = Live(6, 3, LIMITS)
    for number in (0, 3, 1, 4, 5):
        live.add(ended(number), at=1)
    assert (live.done, live.over) == (5, 1)


@pytest.fixture
def options(deployment, tiny_llama):
    """Of a load test of the YAML's questions, and its deployment."""
    from argparse import Namespace

    found = deployment(None, model=tiny_llama)
    names = dict.fromkeys(
        ("workload", "rate", "requests", "num_users", "seed", "model", "protocol", "target", "samples")
    )
    return found, Namespace(**names)


def test_the_form_chooses_another_workload_and_rate(options, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({"prompt_tokens": 40, "output_tokens": 10, "arrivals": "constant", "rate": 5}))
    options[1].workload = str(file)
    chosen = RunOptions(*options)
    assert str(file) in chosen.workloads and chosen.source.users is None
    work = chosen.by_form({"user_count": "50", "rate": "20", "requests": "30"})
    assert (work.users, work.count) == (None, 30), "an open loop has no users, whatever the form says"
    assert work.due(29) - work.due(28) == pytest.approx(0.05)
    assert chosen.by_form({"rate": "", "user_count": "1"}).settings()["rate"] == pytest.approx(5)
    questions = chosen.by_form({"workload": "questions", "requests": "12", "user_count": "7"})
    assert (questions.users, questions.count, options[1].requests) == (7, 16, 12)
    assert chosen.source is questions, "made once"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"rate": "fast"}, "rate: expected a number above 0, got 'fast'"),
        ({"rate": "inf"}, "rate: expected a number above 0, got 'inf'"),
        ({"rate": "0"}, "rate: expected a number above 0, got '0'"),
        ({"requests": "0"}, "requests: expected a whole number of at least 1, got '0'"),
        ({"user_count": "0"}, "user_count: expected a whole number of at least 1, got '0'"),
        ({"protocol": ""}, "protocol: expected http or grpc, got ''"),
        ({"workload": "no-such"}, "--workload: 'no-such' is not a file or a known name"),
        ({"workload": "questions", "rate": "4"}, "--rate and --seed need --workload"),
    ],
)
def test_a_wrong_form_is_one_line_and_changes_nothing(options, form, said):
    chosen = RunOptions(*options)
    before, work = dict(vars(options[1])), chosen.source
    with pytest.raises(ToolkitError, match=said.replace("(", r"\(")) as error:
        chosen.by_form(form)
    assert "\n" not in str(error.value)
    assert vars(options[1]) == before and chosen.source.count == work.count
