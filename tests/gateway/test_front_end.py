"""The real front end with two real workers, each before a Triton whose answers the test decides."""

from __future__ import annotations

import http.client
import json
import os
import random
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gateway.fake_triton import FULL, FakeTriton
from tests.ports import free_port
from tests.waiting import eventually
from toolkit.config.histograms import HISTOGRAMS
from toolkit.config.operating import PROMPT_WEIGHT
from toolkit.gateway.dynamo import endpoint, environment
from toolkit.gateway.error_form import LAST_WAS_FULL
from toolkit.gateway.shared import shared
from toolkit.monitor import packages
from toolkit.monitor.read_page import read_page
from toolkit.slo.server_metrics import Value, parse

pytestmark = pytest.mark.slow

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
needs_exporter = pytest.mark.skipif(not packages.installed(packages.EXPORTER), reason=f"needs {packages.EXTRA}")
PYTHON = (sys.executable, "-P", "-m")


@dataclass
class Workers:
    """All parts of OpenAI's API but Envoy and the gate."""

    port: int
    tritons: list[FakeTriton]
    processes: list[subprocess.Popen[str]]
    metrics: list[int]
    """The ports of the workers' metrics."""

    def ask(self, stream: bool = False, **more: Any) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        body = {"model": "llama", "prompt": "abc", "max_tokens": 3, "stream": stream, **more}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        status, text = response.status, response.read().decode()
        connection.close()
        return status, text

    def page(self, port: int) -> list[Value]:
        return list(parse(read_page(f"http://127.0.0.1:{port}/metrics")))

    def token_times(self) -> list[tuple[float, float]]:
        """(count, sum in seconds) of the time per output token, by worker."""
        name = HISTOGRAMS["tpot"].name
        pages = [{value.name: value.value for value in self.page(port)} for port in self.metrics]
        return [(page[f"{name}_count"], page[f"{name}_sum"]) for page in pages]

    def join(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.write("join\n")
            process.stdin.flush()


@pytest.fixture(scope="module")
def started(tmp_path_factory, door_yaml) -> Iterator[Workers]:
    folder = tmp_path_factory.mktemp("discovery")
    deployment = door_yaml()
    tritons = [FakeTriton(replica.serving.grpc_port) for replica in deployment.per_replica()]
    environ, port, metrics = {**os.environ, **environment(folder)}, free_port(), [free_port(), free_port()]
    commands = [[*PYTHON, "toolkit.gateway.frontend", str(port), "3", str(PROMPT_WEIGHT)]]
    for number in range(2):
        arguments = [str(deployment.file), "rehearsal", str(number), "llama", str(metrics[number])]
        commands.append([*PYTHON, "toolkit.gateway.worker", *arguments])
    with (folder / "log").open("w") as log:
        processes = [
            subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, text=True, stdout=log, stderr=log)
            for command in commands
        ]
    made = Workers(port, tritons, processes[1:], metrics)
    eventually(lambda: _status(made) is not None, 60)
    yield made
    for process in processes:
        process.kill()
        process.wait()
    for triton in tritons:
        triton.close()


def _status(workers: Workers) -> int | None:
    try:
        return workers.ask()[0]
    except OSError:
        return None


@pytest.fixture
def workers(started: Workers) -> Workers:
    """Both take requests, and have had none."""
    for triton in started.tritons:
        triton.error, triton.pause_s, triton.gap_s, triton.breaks_after = "", 0.0, 0.0, None
    started.join()
    eventually(lambda: _status(started) == 200, 30)
    eventually(lambda: all(_reaches(started, triton) for triton in started.tritons), 30)
    for triton in started.tritons:
        triton.asked.clear()
    return started


def _reaches(workers: Workers, triton: FakeTriton) -> bool:
    before = len(triton.asked)
    workers.ask(prompt=f"{time.monotonic()}")
    return len(triton.asked) > before


def test_a_model_is_known_before_its_replicas_are_ready(started):
    """So the front end has read its tokenizer when the first one is ready. It says 404 of a model it does not know."""
    eventually(lambda: _status(started) == 503, 30)
    assert "not ready" in started.ask()[1]
    assert not any(triton.asked for triton in started.tritons)


def test_tokens(workers):
    assert workers.ask()[0] == 200
    status, text = workers.ask(stream=True)
    assert status == 200 and text.count('"text"') >= 3 and text.rstrip().endswith("[DONE]")


def test_the_second_token_does_not_wait_for_an_acknowledgement(workers):
    """A client's kernel delays that by 40 ms, once a connection is no longer new."""
    for triton in workers.tritons:
        triton.gap_s = 0.005
    connection, gaps = http.client.HTTPConnection("127.0.0.1", workers.port, timeout=20), []
    body = json.dumps({"model": "llama", "prompt": "abc", "max_tokens": 3, "stream": True})
    for _ in range(12):
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        read = [time.monotonic() for line in iter(response.readline, b"") if b'"text"' in line]
        gaps.append(read[1] - read[0])
    connection.close()
    assert min(gaps[6:]) < 0.035, gaps


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_replica_passes_a_request_on(workers, stream):
    workers.tritons[0].error = FULL
    for _ in range(4):
        status, text = workers.ask(stream)
        assert status == 200 and "error" not in text
    assert len(workers.tritons[1].asked) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_where_all_are_full_the_status_says_so(workers, stream):
    for triton in workers.tritons:
        triton.error = FULL
    for status, text in [workers.ask(stream) for _ in range(3)]:
        assert status == 504 and LAST_WAS_FULL in text, "what the door makes 429 of"
    assert [len(triton.asked) for triton in workers.tritons] == [3, 3], "each is asked once"
    for triton in workers.tritons:
        triton.error = ""
    assert workers.ask(stream)[0] == 200, "nobody counts as ill"


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_a_wrong_request_has_its_status_also_as_a_stream(workers, pause_s):
    for triton in workers.tritons:
        triton.error, triton.pause_s = "the engine cannot do this", pause_s
    status, text = workers.ask(stream=True)
    assert status == 400 and "the engine cannot do this" in text
    assert sum(len(triton.asked) for triton in workers.tritons) == 1, "no other replica is asked"


def test_prompts_go_where_their_beginning_is_cached(workers):
    """12 beginnings of 7 blocks, 15 prompts each, four at a time; a pool holds 64 blocks. Nearly all go where the first
    one went."""
    draw = random.Random(5)
    beginnings = ["".join(draw.choices(string.ascii_letters, k=200)) for _ in range(12)]
    prompts = [f"{beginning} {n}" for n in range(15) for beginning in draw.sample(beginnings, len(beginnings))]
    for triton in workers.tritons:
        triton.pause_s = 0.02
    with ThreadPoolExecutor(4) as pool:
        assert {status for status, _ in pool.map(lambda prompt: workers.ask(prompt=prompt), prompts)} == {200}
    served = [Counter(tuple(asked["input_ids"][:150]) for asked in triton.asked) for triton in workers.tritons]
    computed = sum(map(len, served))  # 12 at best, 24 where each goes to both; a busy machine moves some
    assert computed <= 18
    assert min(map(len, served)) >= 3, "each has its share"


def test_a_replica_without_the_beginning_gets_none_of_a_few_users_prompts(workers):
    """So `toolkit tune --apply` says it when its canary, whose cache is new, has too few of OpenAI's requests."""
    beginning = "".join(random.Random(6).choices(string.ascii_letters, k=200))
    assert {workers.ask(prompt=f"{beginning} {number}")[0] for number in range(12)} == {200}
    assert sorted(len(triton.asked) for triton in workers.tritons) == [0, 12]


@needs_exporter
@pytest.mark.parametrize("stream", [False, True])
def test_the_worker_measures_the_time_per_output_token(workers, stream):
    for triton in workers.tritons:
        triton.gap_s, triton.pause_s = 0.2, 1.5
    before = workers.token_times()
    for _ in range(2):
        assert workers.ask(stream, max_tokens=4)[0] == 200
    assert workers.ask(stream, max_tokens=1)[0] == 200, "one token has no time after the first"
    counts, seconds = new_token_times(workers, before)
    assert counts == 2
    assert 2 * 0.15 <= seconds < 2 * 0.5, "0.2 s per token after the first, and not the wait for the first"


@needs_exporter
def test_the_buckets_of_the_worker_are_those_of_the_models(workers):
    name, labels = HISTOGRAMS["tpot"].name, {"model": "llama", "protocol": "openai", "replica": "1"}
    page = [value for value in workers.page(workers.metrics[1]) if value.name == f"{name}_bucket"]
    bounds = shared("latency").boundaries(*HISTOGRAMS["tpot"].buckets)
    assert [value.labels["le"] for value in page] == [*(f"{bound:g}" for bound in bounds), "+Inf"]
    assert all(labels.items() <= value.labels.items() for value in page)


@needs_exporter
def test_a_stream_that_moves_counts_once_and_the_front_end_has_its_pause(workers):
    """With the tokens from the replica that ended it: the first one had two, the second one has two after a pause."""
    name = "dynamo_frontend_inter_token_latency_seconds_sum"
    for triton in workers.tritons:
        triton.gap_s = 0.2
    prompt = "".join(random.Random(7).choices(string.ascii_letters, k=200))
    assert workers.ask(prompt=prompt)[0] == 200
    # The prompt goes where its beginning is cached.
    first, second = sorted(workers.tritons, key=lambda triton: not triton.asked)
    first.asked.clear()
    first.breaks_after, second.pause_s = 2, 1.5
    before, gaps = workers.token_times(), _sum(workers, name)
    status, text = workers.ask(stream=True, max_tokens=4, prompt=prompt)
    assert status == 200 and text.count('"text"') >= 4 and text.rstrip().endswith("[DONE]")
    assert len(first.asked) == len(second.asked) == 1, "it moved"
    counts, seconds = new_token_times(workers, before)
    assert counts == 1 and 0.15 <= seconds < 0.8
    assert _sum(workers, name) - gaps >= 1.5


@needs_exporter
def test_a_request_that_fails_has_no_time_per_output_token(workers):
    before = workers.token_times()
    for triton in workers.tritons:
        triton.error = "the engine cannot do this"
    assert workers.ask(stream=True)[0] == 400
    assert new_token_times(workers, before) == (0, 0)


def new_token_times(workers: Workers, before: list[tuple[float, float]]) -> tuple[float, float]:
    """(count, sum in seconds) of both workers since."""
    pairs = list(zip(workers.token_times(), before, strict=True))
    return sum(now[0] - then[0] for now, then in pairs), sum(now[1] - then[1] for now, then in pairs)


def _sum(workers: Workers, name: str) -> float:
    return sum(value.value for value in workers.page(workers.port) if value.name == name)


def test_models_that_differ_have_other_endpoints(door_yaml):
    """The front end serves neither of two that differ and have one name."""
    deployment = door_yaml()
    longer = deployment.model_copy(update={"limits": deployment.limits.model_copy(update={"max_seq_len": 128})})
    assert endpoint(deployment) == endpoint(deployment.per_replica()[1]) != endpoint(longer)
