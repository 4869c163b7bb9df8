"""Whole load tests, as users run them, of a server whose send times are recorded independently."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter

import psutil
import pytest

from tests.waiting import eventually
from toolkit.known_truth import KnownTruth, Settings
from toolkit.load.runner import Options, run
from toolkit.reports.loadtest import report
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.verdict import Outcome

from .trial import LOCUST, recorded, workload_file

pytestmark = pytest.mark.slow


def delays_ms(run_, server) -> list[float]:
    """Of each token: when the load test says it arrived, less when the server sent it."""
    seen = recorded(server)
    delays = []
    for sample in run_.samples:
        sent = seen[sample.id].token_times
        assert sample.tokens_out == len(sent), "as many tokens counted as the server sent"
        delays += [(measured - true) * 1e3 for measured, true in zip(sample.token_times, sent, strict=True)]
    return delays


def tpot_error_ms(run_, server) -> float:
    """The median error of TPOT against the server's own send times."""
    seen = recorded(server)
    errors = []
    for sample in run_.samples:
        sent = seen[sample.id].token_times
        errors.append(sample.tpot_ms - (sent[-1] - sent[0]) / (len(sent) - 1) * 1e3)
    return statistics.median(map(abs, errors))


@pytest.mark.alone
@pytest.mark.parametrize(("protocol", "users"), [("http", 8), ("http", 32), ("grpc", 8)])
def test_times_are_the_servers(server, deployment, protocol, users):
    load = deployment(server, users=users, requests=2 * users, warmup_requests=users, max_tokens=25)
    verdict = run(load, Options(protocol=protocol))
    assert verdict.outcome is Outcome.PASS, verdict.reason
    found = report.read(load)
    assert len(found.samples) == 3 * users and len(verdict.measured.samples) == 2 * users
    assert {sample.protocol for sample in found.samples} == {protocol}
    delays = delays_ms(found, server)
    assert min(delays) > -2, "a token cannot arrive before it is sent"
    assert statistics.median(delays) < 50
    assert tpot_error_ms(found, server) < 5
    seen = recorded(server)
    first_sent = [seen[sample.id].token_times[0] for sample in found.judged]
    truth = statistics.median(sent - sample.due for sent, sample in zip(first_sent, found.judged, strict=True)) * 1e3
    assert verdict.measured.distributions["ttft_ms"].percentile(50) == pytest.approx(truth, abs=50)


@pytest.mark.alone
def test_each_fault_counts_and_says_what_it_was(deployment):
    """Each error of the report is one that the server made on purpose, and none is missing. Slow is no error, but
    outside the limits."""
    said = {
        "error-in-stream": "the server of known truth breaks on demand",
        "refuse": "the server of known truth refuses on demand",
        "status-429": "the server of known truth is busy on demand",
        "hang": "the answer was not whole within 1.5 s",
        "wrong-content-type": "answered with text/html, expected text/event-stream: "
        "'<html><body>Welcome</body></html>\\n'",
        "token-after-end": "the server counts 11 tokens, but max_tokens is 10",
    }
    settings = Settings(faults=(*(f"{kind}:0.11" for kind in said), "truncated:0.11", "slow:0.11:5"), seed=3)
    with KnownTruth(settings) as server:
        load = deployment(server, requests=40, warmup_requests=2, timeout_s=1.5, slo={"tpot_ms": {"p50": 60}})
        verdict = run(load)
        seen = recorded(server)
    judged = Counter(seen[sample.id].fault for sample in report.read(load).judged)
    good, slow = judged.pop(None), judged.pop("slow")
    assert len(judged) == 7 and judged.total() + good + slow == 40
    assert verdict.outcome is Outcome.FAIL and verdict.measured.failed == judged.total()
    errors = verdict.measured.errors
    assert {kind: errors[text] for kind, text in said.items()} == {kind: judged[kind] for kind in said}
    assert sum(count for error, count in errors.items() if "broke off" in error) == judged["truncated"]
    assert verdict.measured.goodput_share == pytest.approx(good / 40), "the slow ones succeed and miss"


def test_no_server_is_one_line_and_no_report(deployment):
    load = deployment(None)
    verdict = run(load)
    assert verdict.outcome is Outcome.COULD_NOT_RUN
    assert "no server is ready here. Start it: toolkit serve" in verdict.reason and "\n" not in verdict.reason
    assert not load.report_dir.exists()


def test_malformed_prompts_are_one_line(server, deployment, tmp_path):
    load = deployment(server, prompts=["x"])
    (tmp_path / "prompts.txt").write_text("\n")
    verdict = run(load)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.COULD_NOT_RUN, 3)
    assert "prompts.txt: holds no prompt" in verdict.reason


def test_a_server_that_dies_in_mid_run_gives_a_report_of_both_halves(deployment):
    with KnownTruth(Settings(faults=("die:24",))) as server:
        load = deployment(server, requests=60, warmup_requests=0)
        verdict = run(load)
    assert verdict.outcome is Outcome.FAIL
    good = len(verdict.measured.samples) - verdict.measured.failed
    assert len(verdict.measured.samples) == 60 and 20 <= good <= 24
    assert any("cannot be reached" in error for error in verdict.measured.errors)
    assert "failed" in (load.report_dir / "report.html").read_text()


def test_stopped_by_a_signal_the_partial_report_says_so(server, deployment):
    """The load test in a process of its own, as from a shell: Ctrl-C arrives there."""
    load = deployment(server, requests=500)
    code = (
        "import sys; from toolkit.config.load import load_deployment; from toolkit.load.runner import run;"
        "sys.exit(run(load_deployment(sys.argv[1])).exit_code)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(load.file)]) as process:
        wait_for_requests(server, 12)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 3
    found = report.read(load)
    assert 4 <= len(found.samples) < 500
    assert found.cut_short == f"stopped after {len(found.samples)} of 504 requests"
    assert all(sample.ok for sample in found.samples), "requests that we broke off are not the server's failures"
    assert "COULD NOT RUN" in (load.report_dir / "report.html").read_text()


def test_killed_itself_it_leaves_no_process_that_goes_on_sending(server, deployment):
    load = deployment(server, requests=500)
    command = [sys.executable, "-m", "toolkit", "loadtest", str(load.file), "--no-self-check"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for_requests(server, 8)
        (locust,) = psutil.Process(process.pid).children()
        process.kill()
    assert not psutil.wait_procs([locust], timeout=20)[1]


def test_stopped_in_the_self_check_it_ends_at_once_and_leaves_nothing(server, deployment, tmp_path):
    load, temporary = deployment(server), tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import sys; from toolkit.config.load import load_deployment; from toolkit.load.runner import Options, run;"
        "verdict = run(load_deployment(sys.argv[1]), Options(self_check=True)); print(verdict.reason);"
        "sys.exit(verdict.exit_code)"
    )
    command = [sys.executable, "-c", code, str(load.file)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        eventually(lambda: "--samples" in str([child.cmdline() for child in children_of(process.pid)]))
        started = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (3, "stopped during the self-check, before the first request to the server\n")
    assert not any(child.is_running() for child in started) and not list(temporary.iterdir())
    assert not server.records() and not load.report_dir.exists()


def test_killed_workers_end_the_test_and_are_named(server, deployment, tmp_path):
    """Locust itself would wait for ever."""
    load = deployment(server, requests=600)
    code = (
        "import sys; from toolkit.config.load import load_deployment; from toolkit.load.runner import Options, run;"
        "sys.exit(run(load_deployment(sys.argv[1]), Options(processes=2)).exit_code)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(load.file)]) as process:
        wait_for_requests(server, 12)
        [master] = psutil.Process(process.pid).children()
        workers = master.children()
        for worker in workers:
            worker.kill()
        assert len(workers) == 2 and process.wait(60) == 3
    found = report.read(load)
    done = len(found.samples)
    assert found.cut_short == (
        f"stopped after {done} of 604 requests: 2 of 2 worker processes died or went silent, "
        f"and {604 - done} requests have no answer"
    )
    assert 8 <= done < 604 and not master.is_running()


def test_plain_locust_with_worker_processes_collects_every_sample(deployment, tmp_path):
    with KnownTruth(Settings(faults=("error-in-stream:0.3",))) as server:
        check_worker_processes(server, deployment(server), tmp_path)


def check_worker_processes(server, load, tmp_path) -> None:
    command = [*LOCUST, "--headless", "--users", "6", "--processes", "2", "--requests", "26"]
    environment = {**os.environ, "TOOLKIT_CONFIG": str(load.file)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    found = report.read(load)
    assert sorted(sample.id for sample in found.samples) == sorted(f"load-{n}" for n in range(30))
    broken = {name for name, record in recorded(server).items() if record.fault}
    assert {sample.id for sample in found.samples if not sample.ok} == broken and 3 < len(broken) < 20
    assert (found.settings["processes"], found.settings["users"]) == (2, 6)
    assert "FAIL" in done.stderr and str(load.report_dir / "report.html") in done.stderr


def test_plain_locust_without_a_deployment_says_what_to_give():
    environment = {key: value for key, value in os.environ.items() if key != "TOOLKIT_CONFIG"}
    done = subprocess.run([*LOCUST, "--headless"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "error: the deployment is missing. Use --deployment CONFIG" in done.stderr
    assert "Traceback" not in done.stderr


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_for_requests(server, count: int) -> None:
    eventually(lambda: len(server.records()) >= count)


@pytest.mark.alone
@pytest.mark.parametrize(("protocol", "processes"), [("http", None), ("http", 2), ("grpc", None)])
def test_open_loop_sends_when_requests_are_due(server, deployment, tmp_path, tiny_llama, protocol, processes):
    load = deployment(server, model=tiny_llama)
    file = workload_file(tmp_path, arrivals="constant", rate=20, requests=60)
    verdict = run(load, Options(protocol=protocol, workload=file, processes=processes))
    found = report.read(load)
    assert len(found.samples) == 60 and not verdict.measured.failed, verdict.reason
    assert found.settings["loop"] == "open" and found.settings["rate"] == pytest.approx(20)
    dues = sorted(sample.due for sample in found.samples)
    steps = [after - before for before, after in itertools.pairwise(dues)]
    assert statistics.median(steps) == pytest.approx(0.05, abs=0.005), "at the times of the workload, whoever sends"
    assert {sample.id for sample in found.samples} == {f"load-{number}" for number in range(60)}
    assert {sample.worker for sample in found.samples} == set(range(processes or 1))
    assert all(sample.tokens_out == 10 for sample in found.samples)
    lag = statistics.median(sample.dispatch_ms for sample in found.samples)
    assert 0 <= lag < 60, f"sent {lag:.1f} ms after it was due"


@pytest.mark.alone
def test_open_loop_does_not_wait_for_a_slow_server(server, deployment, tmp_path, tiny_llama):
    """A closed loop would send one at a time; here all are under way at once, and TTFT counts from the due time."""
    load = deployment(server, model=tiny_llama, timeout_s=30)
    file = workload_file(tmp_path, arrivals="constant", rate=40, requests=40, output_tokens=60)
    verdict = run(load, Options(workload=file))
    assert len(verdict.measured.samples) == 38 and not verdict.measured.failed
    samples = report.read(load).samples
    last_sent = max(sample.sent for sample in samples)
    assert sum(sample.ended > last_sent for sample in samples) > 20


def test_a_conversation_goes_on_with_what_was_answered(deployment, tmp_path, tiny_llama):
    """Twelve of three turns; where one fails there is nothing to go on with, and the turns after it are misses, too."""
    file = workload_file(tmp_path, arrivals="constant", rate=30, requests=36, turns=3)
    with KnownTruth(Settings(ttft_ms=50, itl_ms=5, faults=("error-in-stream:0.2",), seed=2)) as server:
        load = deployment(server, model=tiny_llama)
        run(load, Options(workload=file))
        sent = recorded(server)
    found = {sample.id: sample for sample in report.read(load).samples}
    assert len(found) == 36
    for first in range(0, 36, 3):
        turns = [found[f"load-{first + n}"] for n in range(3)]
        broken = next((n for n, turn in enumerate(turns) if not turn.ok), 3)
        words = [sent[turn.id].prompt_tokens for turn in turns[: broken + 1]]
        assert all(after >= before + 10 for before, after in itertools.pairwise(words)), "prompt and answer before it"
        assert all(after.due >= before.ended for before, after in itertools.pairwise(turns))
        assert {turn.error for turn in turns[broken + 1 :]} <= {"an earlier turn of the conversation failed"}
        assert not {turn.id for turn in turns[broken + 1 :]} & set(sent)
    assert 2 < sum(not sample.ok for sample in found.values()) < 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"users": 99_999_999_999}, "users: expected from 1 to 64,000, got 99999999999"),
        ({"users": 64_001, "workload": "short"}, "users: expected from 1 to 64,000, got 64001"),
        ({"requests": 10**8}, "requests: expected from 1 to 10,000,000, got 100000000"),
        ({"rate": 1e9, "workload": "short"}, "rate: expected from 1e-06 to 1,000,000, got 1000000000.0"),
        ({"rate": math.nan, "workload": "short"}, "rate: expected from 1e-06 to 1,000,000, got nan"),
    ],
)
def test_numbers_that_no_test_can_have(deployment, options, said):
    verdict = run(deployment(None), Options(**options))
    assert (verdict.outcome, verdict.reason) == (Outcome.COULD_NOT_RUN, said)


def test_a_workload_that_is_not_there(server, deployment):
    verdict = run(deployment(server), Options(workload="no-such"))
    assert verdict.outcome is Outcome.COULD_NOT_RUN
    assert (
        "--workload: 'no-such' is not a file or a known name. Use a file, yaml (the deployment's own), or"
        in verdict.reason
    )


@pytest.mark.alone
def test_generator_error_decides_and_leaves_open(deployment, tmp_path, tiny_llama, monkeypatch):
    """PASS far from the limit, FAIL far beyond it, UNDECIDED where the error of the generator itself is larger."""
    file = workload_file(tmp_path, arrivals="constant", rate=10, requests=20, output_tokens=5)
    monkeypatch.setattr("toolkit.load.self_check.SECONDS", 2.0)

    def judged(limit: float, **options: object) -> Outcome:
        slo = {"ttft_ms": {"p50": limit}, "compliance": 0.01}
        return run(deployment(server, model=tiny_llama, slo=slo), Options(workload=file, **options)).outcome

    with KnownTruth(Settings(ttft_ms=200, itl_ms=20)) as server:
        outcomes = [judged(400, self_check=True)]
        found = report.read(load := deployment(server, model=tiny_llama))
        assert found.own.ttft_ms.p50 > 0
        outcomes.append(judged(100, own=found.own))
        middle = statistics.median(sample.ttft_ms for sample in found.judged)
        outcomes.append(judged(middle, own=GeneratorError(ttft_ms=AtPercentiles(80, 80))))
    assert outcomes == [Outcome.PASS, Outcome.FAIL, Outcome.UNDECIDED]
    assert (load.report_dir / "junit.xml").exists() and "UNDECIDED" in (load.report_dir / "summary.md").read_text()


@pytest.mark.alone
def test_a_capacity_that_is_known(deployment, tmp_path, tiny_llama, monkeypatch):
    """8 answers at a time of 0.1 + 9 x 0.01 s each: 42.1 requests/s. With tests of 2 to 3 s, for want of time."""
    from toolkit.load import search
    from toolkit.load.capacity import measure_capacity

    monkeypatch.setattr(search, "FIRST_S", 2.0)
    monkeypatch.setattr(search, "LONGEST_S", 3.0)

    file = workload_file(tmp_path, arrivals="constant", requests=100)
    settings = Settings(ttft_ms=100, itl_ms=10, slots=8)
    truth = settings.capacity(10)
    assert truth == pytest.approx(8 / 0.19)
    lines: list[str] = []
    with KnownTruth(settings) as server:
        load = deployment(
            server, model=tiny_llama, slo={"ttft_ms": {"p90": 300}, "compliance": 0.9, "requests_per_s": 30}
        )
        found = measure_capacity(load, Options(workload=file), lines.append, budget_s=16)
    assert found.rate == pytest.approx(truth, rel=0.3), lines
    assert len(lines) == len(found.trials)
    left = json.loads((load.rates_dir / "rates.json").read_text())
    assert left["rate"] == found.rate and len(left["trials"]) == len(lines) and left["settings"]["workload"] == "trial"
    assert len({trial["seed"] for trial in left["trials"]}) == len(lines)


def test_repeats_send_other_requests_and_are_one_report(server, deployment, tmp_path, tiny_llama, capfd):
    from toolkit.load.repeats import run_repeatedly

    load = deployment(server, model=tiny_llama)
    file = workload_file(tmp_path, arrivals="poisson", rate=40, requests=12)
    verdict = run_repeatedly(load, Options(workload=file, seed=5), 2).verdict
    assert "repeat 2 of 2" in capfd.readouterr().err
    found = report.read(load)
    assert (verdict.outcome, found.repeats, len(found.judged)) == (Outcome.PASS, (12, 12), 24)
    first, second = ([sample.due - one.samples[0].due for sample in one.samples] for one in found.each)
    assert first != pytest.approx(second, abs=0.01), "another seed has other moments"
