"""Whole load tests, as users run them, of a server whose send times are recorded independently."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port
from toolkit.load.launch import run
from toolkit.load.measure import EPOCH
from toolkit.slo import report
from toolkit.slo.verdict import Outcome

pytestmark = pytest.mark.slow

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
LOCUST = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]


def delays_ms(run_, server) -> list[float]:
    """Of each token: when the load test says it arrived, less when the server sent it."""
    seen = server.requests()
    delays = []
    for sample in run_.samples:
        sent = [EPOCH + ns / 1e9 for ns in seen[sample.id]["token_ns"]]
        assert sample.tokens_out == len(sent), "as many tokens counted as the server sent"
        delays += [(measured - true) * 1e3 for measured, true in zip(sample.token_times, sent, strict=True)]
    return delays


def tpot_error_ms(run_, server) -> float:
    """The median error of TPOT against the server's own send times."""
    seen = server.requests()
    errors = []
    for sample in run_.samples:
        sent = seen[sample.id]["token_ns"]
        errors.append(sample.tpot_ms - (sent[-1] - sent[0]) / (len(sent) - 1) / 1e6)
    return statistics.median(map(abs, errors))


@pytest.mark.parametrize(("protocol", "users"), [("http", 8), ("http", 32), ("grpc", 8)])
def test_times_are_the_servers(server, deployment, protocol, users):
    load = deployment(server, users=users, requests=2 * users, warmup_requests=users, max_tokens=25)
    verdict = run(load, protocol=protocol)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    found = report.read(load)
    assert len(found.samples) == 3 * users and len(verdict.measured.samples) == 2 * users
    assert {sample.protocol for sample in found.samples} == {protocol}
    delays = delays_ms(found, server)
    assert min(delays) > -2, "a token cannot arrive before it is sent"
    assert statistics.median(delays) < 10
    assert tpot_error_ms(found, server) < 1
    seen = server.requests()
    first_sent = [EPOCH + seen[sample.id]["token_ns"][0] / 1e9 for sample in found.judged]
    truth = statistics.median(sent - sample.due for sent, sample in zip(first_sent, found.judged, strict=True)) * 1e3
    assert verdict.measured.distributions["ttft_ms"].percentile(50) == pytest.approx(truth, abs=10)


def test_errors_inside_streams_refusals_and_hanging_requests_count(server, deployment):
    load = deployment(
        server,
        prompts=["hello", "error now", "refuse", "busy", "mute", "cut"],
        requests=16,
        warmup_requests=2,
        timeout_s=1.5,
    )
    verdict = run(load)
    # Requests 2 to 17 of the cycle: "refuse" to "cut", then twice all six.
    assert verdict.outcome is Outcome.FAIL
    assert verdict.measured.failed == 4 + 2 * 5
    errors = verdict.measured.errors
    assert errors["Executor failed process requestId 7"] == 2
    assert errors["prompt has 9 tokens, the limit is 8"] == 3
    assert errors["Maximum queue size of 4 has been reached"] == 3
    assert sum("within 1.5 s" in error for error in errors.elements()) == 3
    assert verdict.measured.goodput_share == pytest.approx(2 / 16)


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


def test_a_server_that_dies_in_mid_run_gives_a_report_of_both_halves(server, deployment):
    load = deployment(server, requests=60, warmup_requests=0)
    killer = threading.Thread(target=lambda: (wait_for_requests(server, 20), server.process.kill()))
    killer.start()
    verdict = run(load)
    killer.join()
    assert verdict.outcome is Outcome.FAIL
    good = len(verdict.measured.samples) - verdict.measured.failed
    assert len(verdict.measured.samples) == 60 and 16 <= good < 60
    assert any("cannot be reached" in error for error in verdict.measured.errors)
    assert "failed" in (load.report_dir / "report.html").read_text()


def test_stopped_by_a_signal_the_partial_report_says_so(server, deployment):
    """The load test in a process of its own, as from a shell: Ctrl-C arrives there."""
    load = deployment(server, requests=500)
    code = (
        "import sys; from toolkit.config import Deployment; from toolkit.load.launch import run;"
        "sys.exit(run(Deployment.load(sys.argv[1])).exit_code)"
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


def test_plain_locust_with_worker_processes_collects_every_sample(server, deployment, tmp_path):
    load = deployment(server, prompts=["hello", "hello", "error now"])
    command = [*LOCUST, "--headless", "--users", "6", "--processes", "2", "--requests", "26"]
    environment = {**os.environ, "TOOLKIT_CONFIG": str(load.file)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    found = report.read(load)
    assert sorted(sample.id for sample in found.samples) == sorted(f"load-{n}" for n in range(30))
    assert sum(not sample.ok for sample in found.samples) == 10
    assert (found.settings["processes"], found.settings["users"]) == (2, 6)
    assert "FAIL" in done.stderr and str(load.report_dir / "report.html") in done.stderr


def test_plain_locust_without_a_deployment_says_what_to_give():
    environment = {key: value for key, value in os.environ.items() if key != "TOOLKIT_CONFIG"}
    done = subprocess.run([*LOCUST, "--headless"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "error: no deployment given. Use --deployment CONFIG" in done.stderr
    assert "Traceback" not in done.stderr


def test_web_ui_runs_one_test_after_another_and_shows_our_metrics(server, deployment, tmp_path):
    load = deployment(server, slo={"ttft_ms": {"p50": 1}})
    port = free_port()
    command = [*LOCUST, "--deployment", str(load.file), "--web-host", "127.0.0.1", "--web-port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as locust:
        try:
            for protocol in ("http", "grpc"):
                form = {"user_count": 3, "spawn_rate": 3, "protocol": protocol, "requests": 6}
                eventually(lambda form=form: post(f"http://127.0.0.1:{port}/swarm", form))
                eventually(lambda protocol=protocol: report.read(load).settings["protocol"] == protocol)
            statistics_ = get(f"http://127.0.0.1:{port}/stats/requests")
        finally:
            locust.send_signal(signal.SIGINT)
        assert locust.wait(30) == 1, "the exit code is that of the last verdict"
    lines = {entry["name"]: entry["num_requests"] for entry in statistics_["stats"]}
    assert lines == {"end-to-end": 10, "TTFT": 10, "TPOT": 10, "Aggregated": 10}
    found = report.read(load)
    assert {sample.protocol for sample in found.samples} == {"grpc"}
    assert (len(found.samples), found.settings["users"], found.settings["requests"]) == (10, 3, 6)


def wait_for_requests(server, count: int) -> None:
    eventually(lambda: len(server.requests()) >= count)


def eventually(condition, timeout_s: float = 60):
    """Wait until it holds; an error in it means not yet."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def post(url: str, form: dict[str, object]) -> bool:
    with urllib.request.urlopen(url, data=urllib.parse.urlencode(form).encode()) as answer:
        return json.load(answer)["success"]


def get(url: str):
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)
