"""Load tests set beside each other, where it is known what differs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.slo.samples import EPOCH, failed, lognormal, sample
from toolkit.cli.main import cli
from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.config.sections import Percentiles, Slo
from toolkit.errors import ToolkitError
from toolkit.reports.compare import page as compare_page
from toolkit.reports.compare.compare import compare
from toolkit.reports.loadtest import report
from toolkit.slo.change import Side, latency_change, rate_change
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.metrics import Measured
from toolkit.slo.run import Run
from toolkit.slo.verdict import Outcome

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
SLO = Slo(ttft_ms=Percentiles(p50=500, p99=5000))


@pytest.fixture
def made(tmp_path):
    """Writes a report and returns its directory."""

    def make(name: str, samples, settings=None, own=None, slo=SLO, cut_short=None, **sections) -> Path:
        deployment = load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path / name, "name": name, "slo": slo})
        run = Run(tuple(samples), 0, EPOCH, {"protocol": "http", "users": 4, **(settings or {})}, cut_short, own)
        deployment = with_settings(deployment, **sections)
        directory = deployment.report_dir
        directory.mkdir(parents=True)
        report.write_data(directory, deployment, run, report.verdict_of(deployment, run))
        return directory

    return make


def row(found, name: str):
    return next(row for row in found.rows if row.name == name)


def test_a_shift_is_found_and_measured(made) -> None:
    """Everything takes a fifth longer."""
    found = compare([made("a", lognormal(600, 1)), made("b", lognormal(600, 2, scale=1.2))])
    for name in ("ttft_ms.p50", "ttft_ms.p90", "e2e_ms.p50"):
        change = row(found, name).changes[0]
        low, high = change.interval
        assert change.result == "worse" and low < 20 < high and low < change.percent < high
    assert (found.outcome, found.outcome.value) == (Outcome.FAIL, 1)
    assert "TTFT P50 in B" in found.reason


def test_the_same_shift_the_other_way_is_better(made) -> None:
    found = compare([made("a", lognormal(600, 1, scale=1.2)), made("b", lognormal(600, 2))])
    assert row(found, "ttft_ms.p50").changes[0].result == "better"
    assert found.outcome is Outcome.PASS and "is significantly worse" in found.reason


@pytest.mark.thorough
def test_where_nothing_differs_about_one_in_twenty_seems_to() -> None:
    seeming = {50: 0, 90: 0, "rate": 0}
    for pair in range(150):
        first, other = (Side.of(Run(tuple(lognormal(120, 2 * pair + n)), 0, EPOCH, {}), {}, n) for n in (0, 1))
        for q in (50, 90):
            seeming[q] += latency_change(first, other, "ttft_ms", q).result in ("better", "worse")
        seeming["rate"] += rate_change(first, other, "requests_per_s").result in ("better", "worse")
    assert all(2 <= count <= 15 for count in seeming.values()), seeming


def test_a_percentile_that_too_few_lie_beyond_is_not_judged(made) -> None:
    found = compare([made("a", lognormal(399, 1)), made("b", lognormal(399, 2, scale=3))])
    assert row(found, "ttft_ms.p99").changes[0].result == "too few requests"
    assert row(found, "ttft_ms.p50").changes[0].result == "worse"
    few = compare([made("c", lognormal(399, 1)), made("d", lognormal(399, 2))])
    assert few.outcome is Outcome.UNDECIDED and "unclear for TTFT P99 in B" in few.reason


def test_rates_are_better_when_higher(made) -> None:
    slow, fast = ([sample(100, 120, due=n / rate) for n in range(400)] for rate in (5, 10))
    found = compare([made("a", slow, slo=Slo(requests_per_s=4)), made("b", fast)])
    rate = row(found, "requests_per_s")
    assert rate.limited and rate.changes[0].result == "better"
    assert rate.changes[0].percent == pytest.approx(100, abs=1)
    assert row(found, "tokens_per_s").changes[0].result == "better"


def test_failed_requests_are_worse_in_compliance_and_at_the_end_of_the_latencies(made) -> None:
    good = [sample(100, 120, due=n / 10) for n in range(450)]
    bad = [one if n % 15 else failed(n / 10) for n, one in enumerate(good)]
    found = compare([made("a", good), made("b", bad)])
    share, last = row(found, "compliance").changes[0], row(found, "ttft_ms.p99").changes[0]
    assert share.result == "worse" and share.percent == pytest.approx(-100 * 30 / 450)
    assert (last.result, last.value, last.percent) == ("worse", math.inf, None)


def test_a_difference_within_the_generators_error_is_not_the_servers(made) -> None:
    own = GeneratorError(ttft_ms=AtPercentiles(100, 2000))
    runs = [lognormal(600, 1), lognormal(600, 2, scale=1.2)]
    found = compare([made(name, samples, own=own) for name, samples in zip("ab", runs, strict=True)])
    assert row(found, "ttft_ms.p50").changes[0].result == "within the generator's error"
    assert found.outcome is Outcome.UNDECIDED


def test_a_generator_that_read_late_saw_no_difference(made) -> None:
    own = GeneratorError(ttft_ms=AtPercentiles(1, 2), read_late_ms=2000.0)
    runs = [lognormal(600, 1), lognormal(600, 2, scale=1.2)]
    found = compare([made(name, samples, own=own) for name, samples in zip("ab", runs, strict=True)])
    assert row(found, "ttft_ms.p50").changes[0].result == "within the generator's error"


def test_nothing_can_be_less_by_more_than_all_of_it(made) -> None:
    """30 requests in fits and starts, and a twentieth of their rate: the intervals are wide."""
    few = lognormal(30, 1, rate=20.0), lognormal(30, 2, rate=1.0)
    found = compare([made(name, samples) for name, samples in zip("ab", few, strict=True)])
    change = row(found, "requests_per_s").changes[0]
    assert -100 < change.interval[0] < change.percent < change.interval[1] < 0 and change.result == "worse"


def test_three_runs_fit_a_terminal(made, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = run(*(made(name, lognormal(600, seed)) for seed, name in enumerate("abc"))).stdout
    assert "B - A" in text and "C - A" in text
    tables = [line for line in text.splitlines() if line.startswith("│")]
    assert "…" not in text and max(map(len, tables)) <= 100


def test_a_run_cut_short_or_out_of_cpu_decides_nothing(made) -> None:
    good = lognormal(600, 1)
    a, cut = made("a", good), made("b", lognormal(600, 2, scale=2), cut_short="stopped")
    starved = made("c", good, own=GeneratorError(out_of_cpu=True))
    assert compare([a, cut]).reason == "B was cut short"
    assert compare([a, a, starved]).reason == "the load generator of C ran out of CPU"
    assert compare([a, starved]).outcome is Outcome.UNDECIDED


def test_a_setting_that_an_older_toolkit_did_not_know_counts_as_its_default(made) -> None:
    before, after = made("a", lognormal(20, 1)), made("b", lognormal(20, 2), gateway={"max_requests": 5})
    file = before / "report.json"
    content = json.loads(file.read_text())
    del content["deployment"]["gateway"], content["deployment"]["parallel"]["replicas"]
    file.write_text(json.dumps(content))
    differing = dict(compare([before, after]).settings)
    assert not {name for name in differing if name.startswith("parallel.")}
    assert {name for name in differing if name.startswith("gateway.")} == {"gateway.max_requests"}


def test_settings_that_differ_are_named_and_another_load_is_warned_of(made) -> None:
    a = made("a", lognormal(50, 1), {"seed": 1})
    b = made("b", lognormal(50, 2), {"seed": 2, "processes": 2}, limits={"max_num_tokens": 256})
    found = compare([a, b])
    differing = dict(found.settings)
    assert differing["limits.max_num_tokens"] == ("8192", "256") and differing["loadtest.seed"] == ("1", "2")
    assert "name" not in differing and "output" not in differing and "parallel.tp" not in differing
    assert found.warnings == ("the load was not the same: seed 1 | 2",)
    assert compare([a, a]).warnings == ("A and B are the same run",)


def test_all_are_measured_by_the_limits_of_the_first(made) -> None:
    samples = lognormal(200, 1)
    found = compare([made("a", samples, slo=Slo(ttft_ms=Percentiles(p50=400))), made("b", samples)])
    assert row(found, "compliance").first == row(found, "compliance").changes[0].value
    assert row(found, "compliance").first == Measured(samples, {"ttft_ms": 400}).goodput_share
    assert any("measured by the limits of A" in warning for warning in found.warnings)


def test_what_is_no_report_is_one_line(made, tmp_path) -> None:
    a = made("a", lognormal(20, 1))
    with pytest.raises(ToolkitError, match="expected 2 to 26 reports, got 1"):
        compare([a])
    with pytest.raises(ToolkitError, match="expected 2 to 26 reports, got 27"):
        compare([a] * 27)
    with pytest.raises(ToolkitError, match=r"there is no report here\. Give a report directory"):
        compare([a, tmp_path])
    content = json.loads((a / "report.json").read_text())
    broken = {"run": {}, "deployment": {}}
    for key, value in broken.items():
        (a / "report.json").write_text(json.dumps({**content, key: value}))
        with pytest.raises(ToolkitError, match=r"report\.json: "):
            compare([a, a])
    with pytest.raises(ToolkitError, match="no requests after the warm-up"):
        compare([made("none", []), a])


SPOILT = [
    (("deployment", "slo", "compliance"), math.nan, "deployment.slo.compliance: input should be "),
    (("deployment",), [], "is not a valid report: deployment: input should be a valid dictionary, got []"),
    (
        ("run", "started"),
        1e300,
        "is not a valid report: run.started: input should be less than 250000000000, got 1e+300",
    ),
]


@pytest.mark.parametrize(("place", "value", "complaint"), SPOILT, ids=lambda value: str(value)[:30])
def test_values_that_no_report_has(made, place, value, complaint) -> None:
    a = made("a", lognormal(20, 1))
    content = json.loads((a / "report.json").read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (a / "report.json").write_text(json.dumps(content))
    with pytest.raises(ToolkitError, match=re.escape(f"report.json: {complaint}")):
        compare([a, a])


def test_what_a_report_names_does_nothing_to_the_terminal(made, tmp_path) -> None:
    """Settings are no markup of rich, and their control characters are shown; also in a report of another program."""
    a, b = made("a", lognormal(20, 1)), made("b", lognormal(20, 2))
    content = json.loads((b / "report.json").read_text())
    deep = {}
    for _ in range(300):
        deep = {"x": deep}
    content["run"]["settings"] |= {"[/red]": "[bold]\x1b[2Jx[/]", "deep": deep, "long" * 500: "y" * 5000}
    content["deployment"] |= {"name": "n\x1b[31m\ud800" + "z" * 5000, "loadtest": "none"}
    content["versions"] = 5
    (b / "report.json").write_text(json.dumps(content))
    done = run(a, b, "--html", tmp_path / "page.html")
    assert done.exit_code == 2 and r"[bold]\x1b[2Jx[/]" in done.stdout and r"B  n\x1b[31m\ud800zzz" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for text in (done.stdout, page):
        assert all(c.isprintable() or c in "\n\xa0\u202f" for c in text)
    assert json.loads(run(a, b, "--json").stdout)["reports"][1]["name"].startswith(r"n\x1b[31m\ud800zz")


def test_the_page_is_self_contained_and_escapes(made) -> None:
    a, b = made("a", lognormal(600, 1)), made("<b>", lognormal(600, 2, scale=1.3), {"model": "<script>"})
    page = compare_page.page(compare([a, b, a]))
    assert not re.search(r"<script|<link|<img|@import|https?://", page)
    assert page.index("<strong>WORSE</strong>") < page.index("Settings that differ") < page.index("<svg")
    assert page.count("<svg") == 2 and "&lt;script&gt;" in page and "&lt;b&gt;" in page


def run(*arguments: object):
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)], standalone_mode=True)


def test_the_command(made, tmp_path) -> None:
    a, b = made("a", lognormal(600, 1)), made("b", lognormal(600, 2, scale=1.2))
    done = run(a / "report.json", b, "--json", "--html", tmp_path / "page.html")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["exit_code"], found["outcome"]) == (1, 1, "WORSE")
    assert found["metrics"][0]["name"] == "ttft_ms.p50" and found["metrics"][0]["changes"][0]["result"] == "worse"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    text = run(a, b)
    assert text.exit_code == 1 and re.search(r"TTFT P50 \* .* worse", text.stdout)
    assert run(a, a).exit_code == 0 and "NO WORSENING SEEN" in run(a, a).stdout


def test_what_is_no_verdict_has_an_exit_code_of_its_own(made, tmp_path) -> None:
    """2 is UNDECIDED, so that wrong usage cannot be 2 here."""
    assert run("--nonsense").exit_code == run().exit_code == 3
    assert CliRunner().invoke(cli, ["loadtest", "--users", "0", "x.yaml"]).exit_code == 3
    assert run(made("a", lognormal(20, 1)), made("b", lognormal(20, 2))).exit_code == 2
    found = CliRunner().invoke(cli, ["compare", str(tmp_path), str(tmp_path)])
    assert isinstance(found.exception, ToolkitError) and found.exception.exit_code == 3
