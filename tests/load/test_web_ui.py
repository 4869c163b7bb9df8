"""Load tests from Locust's own page, with the tab and the form that we add."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import urllib.parse
import urllib.request

import pytest

from tests.ports import free_port
from tests.waiting import eventually
from toolkit.reports.loadtest import report

from .trial import LOCUST, recorded, workload_file

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def web_ui(load, folder, *options: str):
    """Locust's page of a load test: its URL. What it ends with is that of the last verdict."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [*LOCUST, "--deployment", str(load.file), "--web-host", "127.0.0.1", "--web-port", str(port), *options]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as locust:
        try:
            eventually(lambda: get(f"{url}/live/data")["state"] == "waiting")
            yield url
        finally:
            locust.send_signal(signal.SIGINT)
            try:
                code = locust.wait(30)
            finally:
                locust.kill()
    assert code == report.verdict_of(load, report.read(load)).exit_code


def has_ended(url: str, test: int) -> bool:
    live = get(f"{url}/live/data")
    return (live["run"], live["state"]) == (test, "ended") and live["verdict"] is not None


def test_web_ui_runs_one_test_after_another_and_shows_our_metrics(server, deployment, tmp_path):
    load = deployment(server, slo={"ttft_ms": {"p50": 1}})
    with web_ui(load, tmp_path) as url:
        for number, protocol in enumerate(("http", "grpc"), start=1):
            form = {"user_count": 3, "spawn_rate": 3, "protocol": protocol, "requests": 6}
            assert post(f"{url}/swarm", form) == (True, "Swarming started")
            assert post(f"{url}/swarm", form) == (False, "A test is running. Stop it before you start another.")
            eventually(lambda number=number: has_ended(url, number))
        statistics_, live = get(f"{url}/stats/requests"), get(f"{url}/live/data")
        with urllib.request.urlopen(f"{url}/live/report") as page:
            assert page.read() == (load.report_dir / "report.html").read_bytes()
    lines = {entry["name"]: entry["num_requests"] for entry in statistics_["stats"]}
    assert lines == {"end-to-end": 10, "TTFT": 10, "TPOT": 10, "Aggregated": 10}
    found = report.read(load)
    assert {sample.protocol for sample in found.samples} == {"grpc"}
    assert (len(found.samples), found.settings["users"], found.settings["requests"]) == (10, 3, 6)
    assert (live["verdict"]["outcome"], live["load"]) == ("FAIL", "3 users, closed loop, over grpc")
    last = live["points"][-1]
    assert (last["done"], last["total"], last["failed"], last["in_flight"]) == (10, 10, 0, 0)
    sent = recorded(server)
    truth = statistics.median((sent[s.id].token_times[0] - s.due) * 1e3 for s in found.samples)
    assert last["ttft_p50"] == pytest.approx(truth, abs=50) and truth > 200
    assert last["tpot_p50"] == pytest.approx(20, abs=5)
    assert last["good_share"] == 0 and last["tokens_per_s"] * last["elapsed_s"] == pytest.approx(100, abs=1)


def test_an_open_loop_of_the_web_ui_is_as_the_form_says_each_time(server, deployment, tmp_path, tiny_llama):
    """In two processes, which both have to send what the form says; and with a number of users that means nothing."""
    load = deployment(server, model=tiny_llama)
    file = workload_file(tmp_path, arrivals="constant", rate=10, requests=500)
    with web_ui(load, tmp_path, "--workload", file, "--processes", "2") as url:
        eventually(lambda: get(f"{url}/worker-count")["worker_count"] == 2)
        form = {"user_count": 37, "spawn_rate": 5, "rate": "", "requests": "", "seed": "", "protocol": "http"}
        assert post(f"{url}/swarm", {**form, "rate": "x"}) == (False, "rate: expected a number above 0, got 'x'")
        assert post(f"{url}/swarm", form)[0]
        eventually(lambda: get(f"{url}/live/data")["now"]["done"] > 2)
        urllib.request.urlopen(f"{url}/stop", data=b"").close()
        eventually(lambda: has_ended(url, 1))
        assert "of 500 requests" in report.read(load).cut_short
        assert post(f"{url}/swarm", {**form, "rate": 20, "requests": 20, "seed": 3})[0]
        eventually(lambda: has_ended(url, 2))
    found = report.read(load)
    assert found.cut_short is None and {s.id for s in found.samples} == {f"load-{number}" for number in range(20)}
    assert (found.settings["rate"], found.settings["seed"], found.settings["processes"]) == (20, 3, 2)
    dues = {sample.id: sample.due for sample in found.samples}
    steps = [dues[f"load-{number + 2}"] - dues[f"load-{number}"] for number in range(18)]
    assert steps == pytest.approx([0.1] * 18, abs=0.001), "each of the two processes at its half of the form's rate"


def post(url: str, form: dict[str, object]) -> tuple[bool, str]:
    with urllib.request.urlopen(url, data=urllib.parse.urlencode(form).encode()) as answer:
        said = json.load(answer)
        return said["success"], said["message"]


def get(url: str):
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)
