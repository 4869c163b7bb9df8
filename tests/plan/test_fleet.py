"""`toolkit plan --fleet`: nodes, failures, the day, cost; each against arithmetic by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.plan.fleet import curve as curves
from toolkit.plan.fleet.curve import Curve, Load, load_of, share_of_one, smoothed
from toolkit.plan.fleet.day import Hour, rolling_hours, shares_of, steepest_growth
from toolkit.plan.fleet.exact import simulate_fleet
from toolkit.plan.fleet.failures import Failures, load_seconds, restart_seconds
from toolkit.plan.fleet.fleet import FleetPlan, check_fleet
from toolkit.plan.predict import predict
from toolkit.plan.show.page import page
from toolkit.simulate.one_of_many import simulate_one_of_many

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def toolkit(*arguments: object):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def loads(*rates: float, meets: float = math.inf) -> tuple[Load, ...]:
    """Loads whose P99 of TTFT in ms is 100 x the rate, with 5 x the rate in flight."""
    return tuple(
        Load(rate, {"ttft_ms.p99": 100 * rate}, "" if rate <= meets else "TTFT P99", rate / 10, 5 * rate, rate / 100)
        for rate in rates
    )


def fleet_of(file: Path, rate: float | None = None, nodes: int | None = None) -> FleetPlan:
    """A fleet whose replica meets the SLO up to 4 requests/s and saturates at 6."""
    fleet = FleetPlan(predict(load_deployment(file)), rate, nodes)
    vars(fleet)["curve"] = Curve(loads(1, 2, 4, 5, meets=4), 6.0, 4.0)
    return fleet


@pytest.fixture
def quick(monkeypatch):
    """A curve of few requests: for what does not depend on its figures."""
    monkeypatch.setattr(curves, "REQUESTS", 120)


# --- failures, by hand


def test_a_node_is_away_for_repair_over_repair_and_uptime():
    """0.5 failures per 1,000 h and 100 h of repair: 2,000 h up, 100 h away."""
    failures = Failures(0.0005, 100)
    assert failures.away == pytest.approx(100 / 2100)
    assert failures.per_day(50) == pytest.approx(0.6)


def test_the_nodes_away_are_binomial():
    """Two nodes, each away for 1/4 of the time: none for 9/16, at most one for 15/16."""
    failures = Failures(1 / 30, 10)  # 30 h up, 10 h away
    assert [failures.at_most(k, 2) for k in range(3)] == pytest.approx([9 / 16, 15 / 16, 1.0])
    assert [failures.lost(2, share) for share in (0.5, 0.6, 0.95)] == [0, 1, 2]
    assert Failures(0.0, 24).at_most(0, 1000) == 1.0


def test_a_thousand_nodes_lose_about_as_many_as_poisson_says():
    """1,000 nodes, 0.16 per 1,000 h, 24 h: 3.8 away on average, at most 11 for 99.9 % of the time."""
    failures = Failures(0.00016, 24)
    mean = 1000 * failures.away
    assert mean == pytest.approx(3.825, abs=0.01)
    poisson = [math.exp(-mean) * math.fsum(mean**k / math.factorial(k) for k in range(most + 1)) for most in (10, 11)]
    assert [failures.at_most(k, 1000) for k in (10, 11)] == pytest.approx(poisson, abs=2e-4)
    assert failures.lost(1000) == 11
    assert 0 < failures.at_most(0, 100_000) < 1e-150


def test_the_default_rate_is_metas_419_interruptions():
    nodes, hours = 16_384 / 8, 54 * 24
    per_1000 = 419 / (nodes * hours) * 1000
    assert load_deployment(FLAGSHIP).fleet.failures_per_1000_node_hours == pytest.approx(per_1000, abs=0.005)


def test_a_restart_is_drain_and_load(flagship):
    """141.1 GB at 0.2 GB/s and 120 s: 826 s; with the drain of 30 s 856 s."""
    deployment = load_deployment(FLAGSHIP)
    assert load_seconds(deployment) == pytest.approx(141.1 / 0.2 + 120, rel=0.01)
    assert restart_seconds(deployment) == load_seconds(deployment) + 30
    given = load_deployment(flagship(serving={"startup_timeout_s": 100.0, "drain_timeout_s": 10.0}))
    assert restart_seconds(given) == 110


# --- the day


def test_a_day_is_relative_to_its_busiest_hour():
    shares = shares_of([*range(1, 24), 48])
    assert (shares[0], shares[-1]) == (1 / 48, 1.0)
    usual = shares_of(None)
    assert (min(usual), max(usual)) == pytest.approx((0.3, 1.0))
    assert (usual.index(min(usual)), usual.index(max(usual))) == (3, 15)


def test_the_steepest_growth_may_be_over_midnight():
    assert steepest_growth([7200.0, 3600.0, 0.0]) == pytest.approx(2.0)


def test_a_rolling_restart_takes_the_nodes_that_are_not_needed():
    """10 nodes, half an hour each. The quiet hour needs 8: 2 at once, 4 in the hour. The next needs 7: 3 at once, 6 in
    the hour. So all 10 take 2 hours."""
    hours = [Hour(0, 9.0, 10), Hour(1, 1.0, 8), Hour(2, 2.0, 7), Hour(3, 9.0, 10)]
    assert rolling_hours(hours, 10, 1800) == pytest.approx(2.0)
    assert rolling_hours([Hour(0, 9.0, 10)] * 24, 10, 1800) is None


# --- nodes and cost


def test_nodes_for_a_rate_by_hand(flagship):
    """4 requests/s a node: 100 need 25 and one more to lose. Of 26, 0.1 are away on average and at most 2 for 99.9 % of
    the time; with one that restarts 25 + 3."""
    fleet = fleet_of(FLAGSHIP, rate=100.0)
    assert (fleet.nodes, [(row.lost, row.nodes) for row in fleet.rows]) == (26, [(0, 25), (1, 26), (3, 28)])
    assert fleet.figure("ttft_ms.p99", 100, 25) == pytest.approx(400)
    assert fleet.figure("ttft_ms.p99", 100, 40) == pytest.approx(250)
    assert fleet.figure("ttft_ms.p99", 100, 19) == math.inf  # 5.3 each
    assert fleet.broken_off(100, 25) == pytest.approx(20)


def test_a_node_with_replicas_serves_their_sum(flagship):
    file = flagship(parallel={"tp": 4, "pp": 1, "replicas": 2})
    fleet = fleet_of(file, rate=100.0)
    assert (fleet.node_rate, fleet.nodes) == (8.0, 14)  # 12.5 -> 13, and one
    assert fleet.broken_off(96, 12) == pytest.approx(2 * 20)


def test_the_rate_of_given_nodes():
    fleet = fleet_of(FLAGSHIP, nodes=11)
    assert (fleet.nodes, fleet.rate) == (11, 40.0)
    assert not fleet.exact


def test_cost_per_million_tokens(flagship):
    """26 nodes of 8 GPUs all day: 4,992 GPU-hours. At 100/s all day, 128 tokens each: 1,105.92 M tokens."""
    file = flagship(fleet={"day": [1.0] * 24, "price_per_gpu_hour": 2.5})
    fleet = fleet_of(file, rate=100.0)
    assert fleet.tokens_per_day == pytest.approx(1105.92e6)
    assert fleet.gpu_hours_per_million(24 * 26) == pytest.approx(4992 / 1105.92)
    assert fleet.cost_per_million(24 * 26) == pytest.approx(2.5 * 4992 / 1105.92)
    assert fleet_of(FLAGSHIP, rate=100.0).cost_per_million(24) is None


def test_nodes_are_added_early_enough_to_load(flagship):
    """4 x 25/26 per replica may be used if one is lost. The day grows by 50/s within an hour, for 360 s of loading:
    5 requests/s, 5/26 for each."""
    day = [1.0] * 12 + [2.0] * 12
    file = flagship(fleet={"day": day}, serving={"startup_timeout_s": 360.0})
    assert fleet_of(file, rate=100.0).add_at == pytest.approx(4 * 25 / 26 - 5 / 26)


def test_the_router_is_what_the_traffic_asks_for(flagship):
    assert fleet_of(FLAGSHIP, rate=1.0).router == "power-of-two"
    assert fleet_of(flagship(workload__shared_prefix_tokens=512), rate=1.0).router == "prefix-aware"
    assert fleet_of(flagship(fleet={"router": "random"}), rate=1.0).router == "random"


def test_a_small_fleet_is_checked_by_simulating_all_of_it(flagship, monkeypatch):
    """The curve says 4 nodes and one; the exact simulation says that 4 are not enough, and 5 are."""
    asked = []

    def exactly(prediction, router, nodes, rate) -> bool:
        asked.append(nodes)
        return nodes >= 5

    monkeypatch.setattr("toolkit.plan.fleet.fleet.meets_exactly", exactly)
    assert fleet_of(FLAGSHIP, rate=15.0).nodes == 6
    assert asked == [4, 5]
    monkeypatch.setattr("toolkit.plan.fleet.fleet.meets_exactly", lambda p, r, nodes, rate: nodes >= 3)
    assert fleet_of(FLAGSHIP, rate=15.0).nodes == 4


# --- the curve


def test_figures_between_points_are_on_a_line():
    curve = Curve(loads(1, 2, 4), 6.0, 4.0)
    assert [curve.at(rate, "ttft_ms.p99") for rate in (0.5, 1, 3, 4, 4.1)] == [100, 100, 300, 400, math.inf]
    assert curve.at(0.5, "in_flight") == pytest.approx(2.5)  # idle replicas hold nothing


def test_chance_does_not_make_a_latency_fall_with_the_rate():
    """100, 300, 200, 400: the two in the middle are 250 each."""
    given = zip(loads(1, 2, 3, 4), (100, 300, 200, 400), strict=True)
    noisy = [replace(load, latencies={"ttft_ms.p99": value}) for load, value in given]
    assert [load.figure("ttft_ms.p99") for load in smoothed(noisy)] == [100, 250, 250, 400]


@pytest.mark.thorough
@pytest.mark.parametrize("router", ["power-of-two", "least-requests"])
def test_the_curve_against_the_exact_simulation_of_four_nodes(router, record_property):
    """At 60 % of the saturated rate. The bounds are twice what benchmarks/fleet.md has."""
    prediction = predict(load_deployment(FLAGSHIP))
    rate = 0.6 * prediction.saturation.throughput
    exact = load_of(simulate_fleet(prediction, router, 4, 4 * rate), rate, prediction)
    run = simulate_one_of_many(
        share_of_one(prediction, router, 4),
        prediction.scheduling,
        prediction.times,
        rate,
        router,
        prediction.front_s,
    )
    curve = load_of(run, rate, prediction)
    for name, bound in (("tpot_ms.p50", 0.1), ("in_flight", 0.1), ("ttft_ms.p50", 0.1), ("ttft_ms.p99", 0.5)):
        error = curve.figure(name) / exact.figure(name) - 1
        print(f"{router} {name}: exact {exact.figure(name):.4g}, curve {curve.figure(name):.4g}, error {error:+.1%}")
        assert abs(error) < bound, name


def test_a_trace_keeps_its_common_prefixes_only_behind_a_router_that_knows_them(tmp_path, flagship):
    """Pairs of requests with the same block. Every tenth request of the fleet's has none in common with the next."""
    lines = [{"timestamp": n * 500, "input_length": 512, "output_length": 8, "hash_ids": [n // 2]} for n in range(100)]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"arrivals": "trace", "trace": str(tmp_path / "trace.jsonl")}
    prediction = predict(load_deployment(flagship(workload=changes)))

    def shared(router: str) -> int:
        prompts = [tuple(r.prompt[:8]) for r in share_of_one(prediction, router, 10).requests]
        return len(prompts) - len(set(prompts))

    assert shared("prefix-aware") == curves.REQUESTS // 2
    assert shared("power-of-two") == 0


# --- the command


def test_the_command_as_text_and_data(quick, tmp_path):
    arguments = ["plan", FLAGSHIP, "--fleet", "--rate", "100", "--what-if", "price_per_gpu_hour=2.5"]
    result = toolkit(*arguments)
    assert result.exit_code == 0, result.output
    assert all(len(line.rstrip()) <= 80 for line in result.stdout.splitlines())
    assert "for 100 requests/s, one may be lost" in " ".join(result.stdout.split())
    data = json.loads(toolkit(*arguments, "--json").stdout)
    assert data["nodes"] == data["rows"][1]["nodes"] == data["rows"][0]["nodes"] + 1
    assert len(data["day"]) == 24 and max(hour["nodes_needed"] for hour in data["day"]) == data["nodes"]
    row = data["rows"][1]
    assert row["cost_per_million_tokens"] == pytest.approx(2.5 * row["gpu_hours_per_million_tokens"])
    assert data["replica"]["highest_requests_per_s"] < data["replica"]["saturated_requests_per_s"]
    assert data["add_nodes_above"]["requests_per_s_per_replica"] < data["replica"]["highest_requests_per_s"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "5"], "--rate needs --fleet"),
        (["--nodes", "5"], "--nodes needs --fleet"),
        (["--fleet", "--rate", "5", "--nodes", "5"], "Give only one"),
        (["--fleet", "--rate", "0"], "0"),
        (["--fleet", "--rate", "nan"], "not a rate"),
        (["--fleet", "--rate", "inf"], "not a rate"),
        (["--fleet", "--rate", "1e300"], "1e300 is not a rate. Give requests per second, from 1e-06 to 1,000,000"),
        (["--fleet", "--rate", "1e-300"], "not a rate"),
        (["--fleet", "--nodes", "1"], "1 is not in the range"),
        (["--fleet", "--compare"], "--fleet cannot be combined with --compare"),
        (["--fleet", "--check"], "--fleet cannot be combined with --check"),
    ],
)
def test_wrong_usage_is_one_line(arguments, said):
    result = toolkit("plan", FLAGSHIP, *arguments)
    assert result.exit_code not in (0, 1)
    assert said in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ({"router": "round-robin"}, "fleet.router"),
        ({"day": [1.0] * 23}, "fleet.day: has 23 numbers, expected 24"),
        ({"day": [0.0] * 24}, "fleet.day: has no traffic in any hour"),
        ({"day": [1.0] * 23 + [-1.0]}, "fleet.day"),
        ({"repair_hours": 0.0}, "fleet.repair_hours"),
        (
            {"repair_hours": 1e300},
            "fleet.repair_hours: a node that fails 1.6e+296 times in the time of a repair is away",
        ),
        ({"failures_per_1000_node_hours": 1000, "repair_hours": 1.1}, "at most 1"),
        ({"price_per_gpu_hour": -2.0}, "fleet.price_per_gpu_hour"),
        ({"price_per_gpu_hour": 1e300}, "fleet.price_per_gpu_hour"),
        ({"failures_per_1000_node_hours": -1.0}, "fleet.failures_per_1000_node_hours"),
        ({"nodes": 3}, "fleet.nodes"),
    ],
)
def test_a_bad_value_of_the_yaml_is_one_line(flagship, fleet, said):
    result = toolkit("plan", flagship(fleet=fleet), "--fleet")
    assert result.exit_code == 1 and said in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1


def test_no_fleet_for_a_rehearsal_without_latencies_or_beyond_reason(flagship):
    tiny = ROOT / "build_configs" / "tiny-llama-rehearsal.yaml"
    assert "a rehearsal has no" in str(toolkit("plan", tiny, "--fleet", "--rate", "5").exception)
    with pytest.raises(ToolkitError, match="needs a latency target"):
        check_fleet(load_deployment(flagship(slo={"requests_per_s": 8.0})))
    with pytest.raises(ToolkitError, match="is the most planned for"):
        _ = fleet_of(FLAGSHIP, rate=1e9).nodes


def test_an_slo_that_one_replica_never_meets(quick, flagship):
    """No number of nodes makes a token faster."""
    file = flagship(slo={"tpot_ms": {"p99": 5.0}})
    result = toolkit("plan", file, "--fleet", "--rate", "5")
    assert result.exit_code == 1 and "one replica misses it at any rate" in str(result.exception)


def test_the_page_has_the_fleet(flagship):
    """The plots have an axis in nodes and one in hours; the table has the rows of the text."""
    text = page(predict(load_deployment(flagship(workload__requests=100))), None, fleet=fleet_of(FLAGSHIP, rate=100.0))
    for part in ("<h2>Fleet</h2>", "against nodes", "A day", "add nodes", "26 nodes of 8 x h100-sxm", "12:00"):
        assert part in text
    assert "Cost per M tokens" not in text
