"""A sweep through the command, over load tests whose results are written by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.slo.samples import EPOCH, failed, sample
from toolkit.cli.main import cli
from toolkit.load.repeats import run_repeatedly
from toolkit.load.runner import Attempt, Options
from toolkit.reports.loadtest import report
from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.run import Run
from toolkit.slo.verdict import could_not_run

OPEN = {"loop": "open", "arrivals": "constant", "workload": "short", "protocol": "http"}


@pytest.fixture(autouse=True)
def without_page(monkeypatch) -> None:
    """The page of each load test is drawn in seconds, and nothing here looks at it; the page of the rates is drawn."""
    monkeypatch.setattr("toolkit.reports.loadtest.page.render", lambda *_: "")


@pytest.fixture
def tests_of(deployment, monkeypatch):
    """Replaces the load test: of each call its options; from the number `broken` on no server is there any more. Who
    presses Ctrl-C while the report of number `stopped` is written is too late for that test."""

    def make(broken: int = 99, stopped: int = 99):
        asked: list[Options] = []

        def attempt(deployment, options):
            asked.append(options)
            if len(asked) >= broken:
                return Attempt(could_not_run(deployment.slo, "no server is ready here"))
            samples = [sample(100, 120, due=n / 10) for n in range(40)]
            samples += [failed()] * 10 if (options.rate or 0) > 25 else []
            settings = {**OPEN, "rate": options.rate, "seed": options.seed}
            own = options.own or GeneratorError(cpu=0.1)
            own = replace(own, cpu=(own.cpu or 0) + 0.1)
            run = Run(tuple(samples), 0, EPOCH, settings, own=own)
            return Attempt(report.write(deployment, run), run, len(asked) == stopped)

        monkeypatch.setattr("toolkit.load.capacity.attempt", attempt)
        monkeypatch.setattr("toolkit.load.repeats.attempt", attempt)
        return deployment(None), asked

    return make


def test_a_sweep_that_cannot_go_on_keeps_what_is_there(tests_of):
    load, asked = tests_of(broken=3)
    command = ["loadtest", str(load.file), "--workload", "short", "--sweep", "30,20,40", "--seed", "7", "--json"]
    told = CliRunner().invoke(cli, [*command, "--no-self-check"])
    left = json.loads((load.rates_dir / "rates.json").read_text())
    assert told.exit_code == 3 and json.loads(told.stdout) == left
    assert [(trial["rate"], trial["met"]) for trial in left["trials"]] == [(20, True), (30, False)]
    assert [options.seed for options in asked] == [8, 9, 10], "each with other requests"
    assert left["cut_short"] == "cut short in test 3: no server is ready here" and left["rate"] == 20
    assert "rate" not in left["settings"] and left["settings"]["workload"] == "short"
    assert "Cut short in test 3" in (load.rates_dir / "rates.html").read_text()


def test_a_sweep_that_cannot_begin_leaves_nothing(tests_of):
    load, _ = tests_of(broken=1)
    told = CliRunner().invoke(
        cli, ["loadtest", str(load.file), "--workload", "short", "--sweep", "1", "--no-self-check"]
    )
    assert told.exception.exit_code == 3 and str(told.exception) == "no server is ready here"
    assert not load.rates_dir.exists()


def test_a_repeat_that_cannot_run_is_the_last_and_those_before_are_kept(tests_of):
    load, asked = tests_of(broken=3)
    verdict = run_repeatedly(load, Options(workload="short", seed=5, self_check=True), 4).verdict
    assert (str(verdict.outcome), verdict.reason) == ("COULD NOT RUN", "repeat 3 of 4: no server is ready here")
    assert [options.seed for options in asked] == [5, 6, 7]
    assert [options.self_check for options in asked] == [True, False, False], "once is enough"
    found = report.read(load)
    assert found.repeats == (40, 40) and found.own.cpu == pytest.approx(0.3), "the worst of all times"


def test_ctrl_c_that_comes_too_late_for_a_test_ends_those_to_come(tests_of):
    load, asked = tests_of(stopped=2)
    command = ["loadtest", str(load.file), "--workload", "short", "--no-self-check"]
    assert CliRunner().invoke(cli, [*command, "--sweep", "10,20,30"]).exit_code == 3 and len(asked) == 2
    left = json.loads((load.rates_dir / "rates.json").read_text())
    assert [trial["rate"] for trial in left["trials"]] == [10, 20] and left["cut_short"].endswith("stopped")
    load, asked = tests_of(stopped=2)
    verdict = run_repeatedly(load, Options(workload="short"), 4).verdict
    assert (verdict.exit_code, verdict.reason, len(asked)) == (3, "stopped after repeat 2 of 4", 2)
