"""The load of a drill, against a server whose answers are known."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest

from tests.waiting import eventually
from toolkit.client import connect
from toolkit.config.load import load_deployment
from toolkit.drill.load import PROMPTS, TOKENS, Clients, Load
from toolkit.drill.request import APIS, OPENAI, TRITON_GRPC, TRITON_HTTP, Outcome
from toolkit.known_truth import KnownTruth, Settings

RATE = 40.0


@contextlib.contextmanager
def clients_of(deployment, **settings):
    with KnownTruth(Settings(**{"ttft_ms": 20, "itl_ms": 1, **settings})) as server, contextlib.ExitStack() as stack:
        urls = {OPENAI: f"openai+{server.http}", TRITON_HTTP: server.http, TRITON_GRPC: server.grpc}
        yield Clients(deployment, {api: stack.enter_context(connect(url)) for api, url in urls.items()})


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, tiny_llama):
    file = tmp_path_factory.mktemp("load") / "trial.yaml"
    file.write_text(
        f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nhardware: {{gpu: none}}\nlimits: {{max_seq_len: 256}}\n"
    )
    return load_deployment(file)


def run(sending, texts, count, seed=1):
    """The requests of a load that ends once it has sent so many."""
    with Load(sending, texts, RATE, seed) as load:
        load.begin()
        eventually(lambda: len(load._running) >= count)
        return load.end()


def test_a_quiet_run_and_a_load_that_is_the_same_for_the_same_seed(deployment):
    with clients_of(deployment) as sending:
        texts, rate = sending.quiet()
        assert len(texts) == 2 * len(PROMPTS) and rate > 0
        assert all(len(text.split()) == TOKENS for text in texts.values())
        first, second, other = (run(sending, texts, 24, seed) for seed in (1, 1, 2))
    assert {request.api for request in first} == set(APIS)
    assert {request.outcome for request in first} == {Outcome.WHOLE}
    assert all(request.sent < request.first < request.end for request in first)
    same, again, another = ([(r.api, r.prompt) for r in requests[:8]] for requests in (first, second, other))
    assert same == again != another


def test_it_does_not_wait_for_answers(deployment):
    with clients_of(deployment, ttft_ms=2000) as sending:
        requests = run(sending, {(api, p): "" for api in APIS for p in range(len(PROMPTS))}, 6)
    assert any(later.sent < earlier.end for earlier, later in itertools.pairwise(requests)), "one after the other"


def test_short_answers_are_the_beginning_of_long_ones(deployment):
    with clients_of(deployment) as sending:
        texts, _ = sending.quiet()
        with Load(sending, texts, RATE, 1) as load:
            start = time.time()
            load.send(APIS, 4)
            eventually(lambda: load.unanswered(start - 1) == [])
            assert load.unanswered(time.time()) == list(APIS)
            requests = load.end()
    assert [request.outcome for request in requests] == [Outcome.WHOLE] * 3
    assert {len(request.text.split()) for request in requests} == {4}


def test_a_server_that_breaks_off_and_one_that_is_gone(deployment):
    with clients_of(deployment) as whole:
        texts, _ = whole.quiet()
    with clients_of(deployment, faults=("truncated:1:3",)) as sending:
        cut = [sending.send(api, 0, texts[api if api == OPENAI else TRITON_HTTP, 0]) for api in APIS]
    assert [request.outcome for request in cut] == [Outcome.CUT] * 3
    with clients_of(deployment, faults=("status-429",)) as sending:
        full = [sending.send(api, 0, "text") for api in APIS]
    assert [request.status for request in full] == [429, 429, 503]
    lost = whole.send(OPENAI, 0, "text")
    assert lost.outcome is Outcome.LOST and "cannot be reached" in lost.error
