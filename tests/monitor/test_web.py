"""The web page: its values by hand arithmetic, and that it needs nothing but this machine."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from toolkit.errors import ToolkitError
from toolkit.monitor import board as board_module
from toolkit.monitor.board import HEAT_S, KEPT_S, Board
from toolkit.monitor.page import Page
from toolkit.monitor.web import serve


class Watched:
    """A subject of two stages of two ranks, whose page a test gives."""

    name, tp = "llama", 2

    def __init__(self) -> None:
        self.page = Page()
        self.noted: list[dict[str, Any]] = []

    def state(self) -> str:
        return "ready, http://127.0.0.1:8080"

    def events(self) -> list[dict[str, Any]]:
        return self.noted

    @contextlib.contextmanager
    def looking(self):
        yield lambda: self.page


def page(good: float = 0, total: float = 0, requests: float = 0, tokens: float = 0, busy: float = 0.5) -> Page:
    made = Page()
    made.set("toolkit_slo_limit_seconds", 1.5, target="ttft_p99", metric="ttft", quantile="0.99")
    made.set("toolkit_slo_objective_ratio", 0.99, target="ttft_p99")
    for protocol, share in (("triton", 0.75), ("openai", 0.25)):
        labels = {"target": "ttft_p99", "protocol": protocol}
        made.set("toolkit_slo_good_requests_total", good * share, **labels)
        made.set("toolkit_slo_requests_total", total * share, **labels)
        made.set("toolkit_requests_total", requests * share, protocol=protocol)
        made.set("toolkit_tokens_total", tokens * share, protocol=protocol)
        made.set("toolkit_latency_seconds", share, metric="ttft", quantile="0.99", protocol=protocol)
    made.set("toolkit_replica_phase", 1, replica=0, phase="ready")
    made.set("toolkit_pipeline_empty_ratio", 0.25, replica=0)
    made.set("toolkit_predicted_latency_seconds", 0.5, metric="ttft", quantile="0.99")
    for rank in range(4):
        labels = {"replica": 0, "rank": rank, "gpu": rank, "source": "nvml"}
        made.set("toolkit_gpu_lost", rank == 3, **labels)
        if rank != 3:
            made.set("toolkit_gpu_utilisation_ratio", busy, **labels)
            made.set("toolkit_gpu_memory_used_bytes", 60, **labels)
            made.set("toolkit_gpu_memory_total_bytes", 80, **labels)
            made.set("toolkit_gpu_throttled", rank == 1, reason="heat", **labels)
    return made


def test_browsers_may_ask_while_values_come(monkeypatch):
    """Threads take turns as often as Python lets them."""
    monkeypatch.setattr(board_module, "KEPT_S", 50.0)
    switch = sys.getswitchinterval()
    board, over, shown = Board(Watched()), threading.Event(), page()

    def add() -> None:
        at = 0.0
        while not over.is_set():
            board.add(shown, at)
            at += 1

    adding = threading.Thread(target=add)
    sys.setswitchinterval(1e-6)
    try:
        board.add(shown, -1.0)
        adding.start()
        for _ in range(300):
            state = board.state()
            assert len(state["heat"][0]["values"]) <= len(state["points"]) <= 51
    finally:
        over.set()
        adding.join()
        sys.setswitchinterval(switch)


def test_the_slo_is_that_of_the_last_minute_over_all_protocols():
    board = Board(Watched())
    board.add(page(good=100, total=200), 0.0)
    board.add(page(good=100, total=200), 30.0)
    assert board.state()["slo"]["word"] == "NO TRAFFIC"
    board.add(page(good=199, total=300), 60.0)
    [target] = board.state()["targets"]
    assert (target["label"], target["requests"], target["inside"], target["met"]) == ("TTFT P99", 100, 0.99, True)
    assert board.state()["slo"]["word"] == "INSIDE"
    board.add(page(good=209, total=320), 120.0)
    state = board.state()
    assert state["targets"][0]["inside"] == 0.5 and state["slo"]["tone"] == "FAIL"
    assert state["slo"]["text"] == "1 of 1 targets missed in the last minute: TTFT P99."


def test_rates_are_those_of_the_last_ten_seconds():
    board = Board(Watched())
    board.add(page(requests=1000, tokens=50_000), 100.0)
    assert board.state()["now"]["requests_per_s"] is None, "one look says nothing"
    board.add(page(requests=1020, tokens=51_000), 105.0)
    assert board.state()["now"]["requests_per_s"] == 4 and board.state()["now"]["tokens_per_s"] == 200
    board.add(page(requests=1030, tokens=51_000), 115.0)
    assert board.state()["now"]["requests_per_s"] == 1
    board.add(page(), 125.0)
    assert board.state()["now"]["requests_per_s"] == 0, "an exporter that began again"


def test_the_slower_protocol_s_latency_is_shown_beside_the_prediction():
    board = Board(Watched())
    board.add(page(), 0.0)
    state = board.state()
    assert state["now"]["ttft_0.99"] == 0.75
    assert state["predicted"] == [{"label": "TTFT P99", "predicted_s": 0.5, "measured_s": 0.75}]


def test_ranks_are_in_their_pipeline_stages_with_what_is_wrong():
    board = Board(Watched())
    board.add(page(), 0.0)
    first, second = board.state()["stages"]
    assert [one["rank"] for one in first["ranks"]] == ["0", "1"] and first["empty"] == 0.25
    assert [one["slow"] for one in first["ranks"]] == [[], ["heat"]]
    assert [one["lost"] for one in second["ranks"]] == [False, True]
    assert first["ranks"][0]["memory"] == 0.75 and first["ranks"][0]["label"] == "GPU 0, replica 0 rank 0"


def test_the_page_names_the_gpus_that_nobody_watches():
    board, shown = Board(Watched()), page()
    board.add(shown, 0.0)
    assert board.state()["not_watched"] == []
    shown.set("toolkit_gpus_not_watched", 8, node="node-b", ranks="8-15")
    assert board.state()["not_watched"] == ["not watched: 8 GPUs of node-b (ranks 8-15)"]


def test_it_keeps_minutes_not_hours():
    board = Board(Watched())
    for second in range(1000):
        board.add(page(busy=second / 1000), float(second))
    state = board.state()
    assert state["points"][-1]["elapsed_s"] == KEPT_S and len(state["points"]) == KEPT_S + 1
    assert [row["label"] for row in state["heat"]] == [f"GPU {gpu}, replica 0 rank {gpu}" for gpu in range(3)]
    assert state["heat"][0]["values"][-1] == 0.999 and len(state["heat"][0]["values"]) == HEAT_S + 1


@pytest.fixture
def served():
    """(the subject, its page's URL)."""
    watched, over, urls = Watched(), threading.Event(), []
    watched.page = page(good=1, total=1)
    known = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        known.set()

    thread = threading.Thread(target=serve, args=(watched, 0, lambda seconds: over.wait(0.01), ready))
    thread.start()
    assert known.wait(60)
    yield watched, urls[0]
    over.set()
    thread.join()


def fetch(url: str, **headers: str) -> tuple[str, Any]:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return answer.read().decode(), answer.headers


def test_the_page_needs_nothing_from_elsewhere(served):
    text, headers = fetch(served[1])
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)""", text), "an asset"
    assert "http://" not in text and "https://" not in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_its_values_are_json(served):
    text, headers = fetch(f"{served[1]}/data")
    data = json.loads(text)
    assert headers["Content-Type"] == "application/json" and headers["Cache-Control"] == "no-store"
    assert (data["name"], data["state"]) == ("llama", "ready, http://127.0.0.1:8080")


@pytest.mark.parametrize(("host", "path", "code"), [("elsewhere.example", "/data", 403), ("127.0.0.1", "/etc", 404)])
def test_another_name_or_path_gets_nothing(served, host, path, code):
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(served[1] + path, Host=host)
    assert caught.value.code == code


def test_a_taken_port_is_one_line(taken_port):
    with pytest.raises(ToolkitError, match=f"--port: {taken_port} on 127.0.0.1 cannot be used: "):
        serve(Watched(), taken_port, lambda seconds: True, lambda url: None)
