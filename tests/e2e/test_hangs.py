"""Processes that live and do nothing: each of them, of each rank, is noticed."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolkit.config.load import load_deployment
from toolkit.serve import health
from toolkit.serve.health import HangWatch, Probe
from toolkit.serve.janitor import Member, ServerRun, members
from toolkit.serve.state import ServerState, read_state

from .group import Group, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("served", [4], indirect=True, ids=["4 ranks"]),
    pytest.mark.usefixtures("unwatched"),
]
NOBODY = ServerRun("00000000", Path("/nowhere"))
"""Its processes, none, are looked at: so that a hang is found by what the group does."""
ENGINES = [(rank, "tensorrt_llm") for rank in range(4)]
OTHERS = [(0, model) for model in ("tritonserver", "preprocessing", "postprocessing", "tensorrt_llm_bls")]


def state_of(group: Group) -> ServerState:
    state = read_state(load_deployment(group.file))
    assert state
    return state


@pytest.fixture
def unwatched(group, monkeypatch) -> Iterator[None]:
    """The group's own supervisor is suspended, so that it does not end the group; this process watches, quickly."""
    monkeypatch.setattr(health, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(health, "LOOK_TIMEOUT_S", 0.5)
    supervisor = state_of(group).pid
    os.kill(supervisor, signal.SIGSTOP)
    yield
    wait_for(lambda: group.ask(text_input="Tyger", max_tokens=2), "answers again")
    os.kill(supervisor, signal.SIGCONT)


@contextmanager
def suspended(found: list[Member]) -> Iterator[None]:
    for member in found:
        os.kill(member.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in found:
            os.kill(member.pid, signal.SIGCONT)


def of(group: Group, rank: int, model: str) -> list[Member]:
    found = members(state_of(group).run)
    if model == "tritonserver":
        return [member for member in found if member.rank == rank and member.server]
    return [member for member in found if (member.rank, member.model) == (rank, model)]


# Not the Python processes of rank 0: Triton itself does not bear it long, so its end would be noticed instead.
@pytest.mark.parametrize(("rank", "model"), [(0, "tritonserver"), *ENGINES[1:]])
def test_a_group_that_does_not_answer_is_noticed(group, rank, model):
    found, doubts = of(group, rank, model), []
    assert found
    watch = HangWatch(Probe(load_deployment(group.file)), NOBODY, doubts.append)
    with suspended(found):
        watch.start()
        assert watch.hung.wait(20), doubts
    watch.join()
    assert len(doubts) == 2 and watch.why.startswith("no answer to a one-token request within ")


@pytest.mark.parametrize(("rank", "model"), [*ENGINES, *OTHERS, (3, "tritonserver")])
def test_a_suspended_process_is_named(group, rank, model):
    """Also one whose group answers: one instance of several, or Triton of a rank that computes."""
    first = of(group, rank, model)[0]
    watch = HangWatch(Probe(load_deployment(group.file)), state_of(group).run, lambda _: None)
    with suspended([first]):
        watch.start()
        assert watch.hung.wait(20)
    assert watch.why == f"its process {first.pid} ({model}) is suspended (SIGSTOP)"
