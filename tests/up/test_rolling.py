"""When a restart goes on to the next replica."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import yaml

from tests.monitor.deployments import rehearsal
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.up import rolling
from toolkit.up.events import Events
from toolkit.up.fallback import load_fallbacks
from toolkit.up.replica import Replica
from toolkit.up.rolling import _wait_ready


@pytest.fixture
def replica(tmp_path, tiny_llama):
    """A replica whose group is ready, and whose worker is not. No process is started."""
    file = tmp_path / "trial.yaml"
    file.write_text(
        f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nhardware: {{gpu: none}}\nlimits: {{max_seq_len: 256}}\n"
    )
    replica = Replica(load_deployment(file), {}, tmp_path, Events(tmp_path))
    replica.group.enter("ready")
    replica.worker.enter("starting")
    return replica


def test_a_replica_serves_all_apis_only_when_its_worker_is_ready(replica):
    assert replica.ready and not replica.serves
    replica.reserve = True
    assert replica.serves, "the worker of a standby waits until it is needed"
    replica.reserve = False
    replica.worker.enter("ready")
    assert replica.serves
    replica.group.enter("loading")
    assert not replica.serves


def test_a_restart_waits_for_the_worker_too(replica):
    waiter = threading.Thread(target=_wait_ready, args=([replica],), daemon=True)
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    replica.worker.enter("ready")
    waiter.join(10)
    assert not waiter.is_alive()


def test_a_worker_that_cannot_start_ends_it(replica):
    replica.worker.enter("failed", "exit code 1: no such tokenizer")
    with pytest.raises(ToolkitError, match="worker 0 is not ready: exit code 1: no such tokenizer"):
        _wait_ready([replica])


def test_a_rolling_restart_begins_with_a_replica_that_serves_nobody(tmp_path, monkeypatch):
    """Else a replica that was given up could not be started again while the only other one serves."""
    deployment, order = rehearsal(tmp_path), list[int]()
    replicas = [Replica(one, {}, tmp_path, Events(tmp_path)) for one in deployment.per_replica()]
    for replica, phase in zip(replicas, ("ready", "failed"), strict=True):
        replica.group.enter(phase)

    def change(_: object, group: list[Replica], *__: object) -> None:
        order.append(group[0].number)

    monkeypatch.setattr(rolling, "change", change)
    monkeypatch.setattr(rolling, "check_made", lambda _: None)
    supervisor = SimpleNamespace(deployment=deployment, replicas=replicas, serves=lambda _: None)
    command = {"rolling": True, "file": str(deployment.file), "engine": deployment.engine}
    rolling.restart(supervisor, command, lambda _: None)  # type: ignore[arg-type]
    assert order == [1, 0]


@pytest.fixture
def restarted(tmp_path, tiny_llama, monkeypatch):
    """Restarts a replica with another YAML by name, as `toolkit restart --with` does. No process is started."""

    def write(name: str, **content: object) -> None:
        settings = {"engine": "rehearsal", "model": {"path": str(tiny_llama)}, "hardware": {"gpu": "none"}, **content}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**settings, "output": str(tmp_path / name)}))

    for small, large in (("one", "first"), ("other", "second")):
        write(small, limits={"max_seq_len": 256})
        recovery = {"fallback": [f"{small}.yaml"]}
        write(large, limits={"max_seq_len": 256}, parallel={"tp": 2}, recovery=recovery)
    write("third", limits={"max_seq_len": 256}, parallel={"tp": 2}, recovery={"fallback": ["gone.yaml"]})
    first = load_deployment(tmp_path / "first.yaml")
    monkeypatch.setattr(rolling, "check_made", lambda _: None)
    monkeypatch.setattr("toolkit.up.fallback.check_made", lambda _: None)
    monkeypatch.setattr(rolling, "_wait_ready", lambda replicas, check: None)
    replica = Replica(first, {}, tmp_path, Events(tmp_path))
    replica.fallbacks = load_fallbacks(first)
    others = SimpleNamespace(serve=False, routed_s=0)
    gpus = SimpleNamespace(forget=lambda: None)
    supervisor = SimpleNamespace(deployment=first, replicas=[replica], serves=lambda _: None, others=others, gpus=gpus)

    def restart(name: str) -> Replica:
        command = {"rolling": False, "file": str(tmp_path / f"{name}.yaml"), "engine": "rehearsal"}
        rolling.restart(supervisor, command, said.append)  # type: ignore[arg-type]
        return replica

    said: list[str] = []
    restart.said, restart.replica = said, replica  # type: ignore[attr-defined]
    return restart


def test_the_fallbacks_are_those_of_the_yaml_that_is_served(restarted):
    replica = restarted("second")
    assert (replica.primary.name, [one.name for one in replica.fallbacks]) == ("second", ["other"])


def test_a_yaml_whose_fallback_cannot_take_over_is_refused_before_anything_ends(restarted):
    with pytest.raises(ToolkitError, match=r"third.yaml: recovery.fallback: .*gone.yaml: no such file"):
        restarted("third")
    assert (restarted.said, restarted.replica.primary.name) == ([], "first")


def test_a_wanted_end_that_is_seen_late_is_no_failure(replica, monkeypatch):
    """The restart's thread sees the end, and begins again while the look of `toolkit up` has just seen it too."""
    replica.wanted = False
    restarting = threading.Thread(target=replica.begin_again)

    def cause() -> str:
        restarting.start()
        restarting.join(0.2)  # it must not come in between
        return "exit code 0"

    monkeypatch.setattr(replica.group, "cause", cause)
    monkeypatch.setattr(replica, "_start", lambda: None)
    replica.look(take_over=False)
    restarting.join()
    assert (replica.group.phase, replica.group.backoff.failures) == ("waiting", 0)
