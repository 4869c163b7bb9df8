"""A migration over several nodes, which tell each other about it through a real etcd. Their replicas are stand-ins."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.up.test_membership import deployment, meet, place  # noqa: F401
from tests.waiting import eventually
from toolkit.errors import ToolkitError
from toolkit.up import fleet
from toolkit.up.commands import BACK, Commands, send
from toolkit.up.events import Events
from toolkit.up.fleet import MOVING, WENT_BACK, begin, check_turn, must_go_back, progress
from toolkit.up.other_nodes import OtherNodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("etcd") and shutil.which("openssl")), reason="needs etcd: apt-get install etcd-server openssl"
    ),
]


class Moved:
    """A node, as `toolkit up` runs it, whose replicas run another kind than its YAML says."""

    def __init__(self, number: int, nodes: Any, own: Any, folder: Path) -> None:
        folder.mkdir()
        self.number, self.own = number, own
        self.replicas = [SimpleNamespace(primary=SimpleNamespace(engine="pytorch"), ended=[], lease="", worker=None)]
        self.others, self.events, self.ending = OtherNodes(self.replicas, nodes), Events(folder), False  # type: ignore[arg-type]
        self.commands = Commands(folder / "socket", self)  # type: ignore[arg-type]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @property
    def moved(self) -> bool:
        return any(replica.primary.engine != self.own.engine for replica in self.replicas)

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.others.meet([], self.moved)
            if must_go_back(self):  # type: ignore[arg-type]
                self.commands.go_back()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self.commands.close()


@pytest.fixture
def nodes(meet, deployment, tmp_path) -> Iterator[dict[int, Moved]]:  # noqa: F811
    made = {number: Moved(number, meet(number), deployment, tmp_path / f"node{number}") for number in (1, 2, 3)}
    eventually(lambda: all(len(node.others.records) == 2 for node in made.values()))
    eventually(lambda: all(record.migration.moved for node in made.values() for record in node.others.records))
    yield made
    for node in made.values():
        node.end()


@pytest.fixture
def restarts(nodes, monkeypatch) -> list[int]:
    """The nodes that restarted as their YAML says, in their order. Never two at once."""
    order: list[int] = []
    one = threading.Lock()

    def restart(supervisor: Moved, command: dict[str, Any], tell: Callable[[str], None]) -> None:
        assert one.acquire(blocking=False), "two nodes at once"
        assert command["rolling"] and command["engine"] == "rehearsal"
        order.append(supervisor.number)
        time.sleep(0.2)
        if not hasattr(supervisor, "fails"):
            supervisor.replicas[0].primary = supervisor.own
        one.release()
        if hasattr(supervisor, "fails"):
            raise ToolkitError("replica 0 is not ready")

    monkeypatch.setattr(fleet, "restart", restart)
    return order


def test_one_command_on_any_node_takes_all_back_one_after_the_other(nodes, restarts):
    heard: list[str] = []
    send(str(nodes[2].commands.socket), {"do": BACK}, heard.append)
    assert restarts == [1, 2, 3] and not any(node.moved for node in nodes.values())
    assert heard[0] == "10.0.0.2 has moved, 10.0.0.1 has moved, 10.0.0.3 has moved" and heard[-1] == "no node has moved"
    eventually(lambda: not any(node.others.back_asked for node in nodes.values()))
    for node in nodes.values():
        check_turn(node.others)  # they may move anew


def test_a_node_that_cannot_go_back_is_named_and_does_not_keep_the_others(nodes, restarts):
    nodes[1].fails = True
    with pytest.raises(ToolkitError, match=r"node 10\.0\.0\.1 did not go back: replica 0 is not ready"):
        send(str(nodes[3].commands.socket), {"do": BACK}, lambda _: None)
    assert restarts == [1, 2, 3] and [node.moved for node in nodes.values()] == [True, False, False]


def test_a_node_hears_whose_turn_it_is(nodes):
    one, two, three = (nodes[number].others for number in (1, 2, 3))
    two.note = MOVING
    eventually(lambda: one.records[0].migration.note == MOVING)
    with pytest.raises(ToolkitError, match=r"node 10\.0\.0\.2 moves now"):
        check_turn(one)
    two.note = f"{WENT_BACK}TTFT P50 +12 %"
    eventually(lambda: one.records[0].migration.note == two.note)
    with pytest.raises(ToolkitError, match=r"node 10\.0\.0\.2 went back: TTFT P50 \+12 %"):
        check_turn(one)
    two.note = ""
    nodes[3].replicas[0].primary = nodes[3].own
    eventually(lambda: [record.migration.moved for record in one.records] == [True, False])
    eventually(lambda: check_turn(one) is None)
    assert progress(one)[:2] == ["2 of 3 nodes moved", "next: the same command on 10.0.0.3"]
    assert three.records[0].address == "10.0.0.1"


def test_of_two_that_begin_at_once_one_goes_on(nodes):
    for node in nodes.values():
        node.replicas[0].primary = node.own
    eventually(lambda: not any(record.migration.moved for node in nodes.values() for record in node.others.records))
    with ThreadPoolExecutor(3) as threads:
        begun = [threads.submit(begin, node.others) for node in nodes.values()]
    assert [one.exception() is None for one in begun] == [True, False, False]
    assert [node.others.note for node in nodes.values()] == [MOVING, "", ""]
