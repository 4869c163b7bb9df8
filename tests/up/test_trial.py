"""What a trial of other settings does to the replicas. They are stand-ins; the traffic is a file that grows."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.monitor.deployments import rehearsal
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.up import trial, trial_law
from toolkit.up.backoff import Backoff
from toolkit.up.candidate import changes_of
from toolkit.up.commands import ROLLS_BACK, TRIAL, Commands, send
from toolkit.up.events import Events
from toolkit.up.part import Part
from toolkit.up.trial import Trial, canary_of, check_deployment, recent
from toolkit.up.trial_law import TrialLaw

KEPT = "kept.jsonl"
TLS = {"ca": "ca.pem", "certificate": "node.pem", "key": "node-key.pem"}
ETCD = {"discovery": "etcd://10.0.0.1:2379", "interface": "eth1", "node_tls": TLS}


class StandIn:
    """A replica that is ready. Its `process` is another one after each restart."""

    def __init__(self, deployment: Deployment) -> None:
        self.number = deployment.replica
        self.deployment = self.primary = deployment
        self.reserve = False
        self.group = Part(f"replica {self.number}", Backoff(0.1, 1.0, 3))
        self.restarted_as(deployment)

    def restarted_as(self, deployment: Deployment) -> None:
        self.deployment = self.primary = deployment
        self.group.process = object()  # type: ignore[assignment]
        self.group.enter("ready")

    @property
    def ready(self) -> bool:
        return self.group.phase == "ready"

    serves = ready


class Service:
    """Stand-ins, two or as many as told, and what was done to them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, replicas: int = 2) -> None:
        self.old = rehearsal(folder, monitoring={"traffic": KEPT}, parallel={"replicas": replicas, "tp": 2})
        file = folder / "new.yaml"
        shutil.copyfile(self.old.file, file)
        self.new = load_deployment(file)
        self.folder, self.changes, self.heard = folder, list[tuple[int, str]](), list[str]()
        self.fails: Callable[[int, str], str] = lambda replica, file: ""
        self.during: Callable[[int, str], None] = lambda replica, file: None
        self.supervisor: Any = SimpleNamespace(
            deployment=self.old,
            replicas=[StandIn(replica) for replica in self.old.per_replica()],
            nodes=None,
            ending=False,
            events=Events(folder),
            serves=lambda deployment: setattr(self.supervisor, "deployment", deployment),
        )
        monkeypatch.setattr(trial, "change", self._change)
        monkeypatch.setattr(trial, "LOOK_S", 0.01)
        monkeypatch.setattr(trial, "SETTLE_S", -60.0)
        monkeypatch.setattr(trial_law, "FEWEST", 20)

    def _change(self, _: Any, group: list[StandIn], new: Deployment, tell: Any, check: Any = lambda: None) -> None:
        (replica,) = group
        name = new.file.stem
        self.changes.append((replica.number or 0, name))
        replica.primary = new.per_replica()[replica.number or 0]
        check()
        if error := self.fails(replica.number or 0, name):
            replica.group.enter("waiting")
            raise ToolkitError(error)
        replica.restarted_as(replica.primary)
        self.during(replica.number or 0, name)

    def keep(self, replica: int, count: int, ttft_ms: float, **more: str) -> None:
        """Requests of a replica that ended now. Their latencies differ a little."""
        with (self.folder / KEPT).open("a") as stream:
            for number in range(count):
                row = {"timestamp": time.time() * 1e3, "input_length": 1, "output_length": 5, "replica": replica}
                times = {"ttft_ms": ttft_ms + number % 7, "e2e_ms": ttft_ms + 40 + number % 5}
                stream.write(json.dumps({**row, **times, **more}) + "\n")

    def run(self, interrupted: Callable[[], bool] = lambda: False) -> trial.Outcome:
        self.keep(0, 10, 100)
        one = Trial(
            self.supervisor,
            canary_of(self.supervisor),
            self.new,
            recent(self.old),
            self.heard.append,
            interrupted,
        )
        one._law = TrialLaw("replica 1", self.old.slo.model_copy(update={"ttft_ms": type(self.old.slo.ttft_ms)()}))
        return one.run("scheduler.policy=max_utilization")

    def events(self) -> list[tuple[str, str]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [(event["event"], event.get("cause", "")) for event in map(json.loads, lines)]


@pytest.fixture
def service(tmp_path, monkeypatch) -> Service:
    return Service(tmp_path, monkeypatch)


def traffic(service: Service, canary_ms: float, others_ms: float) -> Callable[[int, str], None]:
    """Once the canary is ready, both serve 200 requests."""

    def serve(replica: int, name: str) -> None:
        if (replica, name) == (1, "new"):
            service.keep(1, 200, canary_ms)
            service.keep(0, 200, others_ms)

    return serve


def test_better_settings_are_taken_by_the_others(service):
    service.during = traffic(service, 60, 100)
    outcome = service.run()
    assert outcome.taken and outcome.reason.startswith("better: TTFT P50 -")
    assert service.changes == [(1, "new"), (0, "new")]
    assert service.supervisor.deployment is service.new
    assert service.events()[-2:] == [("trial", ""), ("taken", outcome.reason)]
    assert "compared after 20 to 80 requests on each side, for at most" in service.heard[0]


@pytest.mark.parametrize(("canary_ms", "reason"), [(140, "worse: TTFT P50 +"), (100, "no difference seen after 200 ")])
def test_worse_and_equal_settings_are_rolled_back(service, canary_ms, reason):
    service.during = traffic(service, canary_ms, 100)
    outcome = service.run()
    assert not outcome.taken and outcome.reason.startswith(reason)
    assert service.changes == [(1, "new"), (1, "watched")]
    assert service.supervisor.deployment is service.old
    assert service.events()[-1] == ("rolled back", outcome.reason)


def test_too_little_traffic_is_rolled_back(service, monkeypatch):
    monkeypatch.setattr(Trial, "limit_s", 0.3)
    service.during = lambda *_: service.keep(1, 5, 60)
    outcome = service.run()
    assert outcome.reason.startswith("too little traffic: replica 1 ended 5 requests, the others 0; 20 on each side")
    assert service.changes == [(1, "new"), (1, "watched")]


def test_too_little_of_openai_s_traffic_says_why(service, monkeypatch):
    """Its router sends prompts where their beginning is cached, and a canary begins with an empty cache."""
    monkeypatch.setattr(Trial, "limit_s", 0.3)
    monkeypatch.setattr(trial, "SAY_S", 0.0)

    def serve(replica: int, name: str) -> None:
        if name == "new":
            service.keep(1, 3, 60)
            service.keep(1, 2, 60, api="openai")
            service.keep(0, 90, 60, api="openai")

    service.during = serve
    why = "; 2 of OpenAI's requests went to replica 1 and 90 to the others, as they go where the beginning of their "
    assert service.run().reason.partition("are needed")[2].startswith(why)
    assert any(why in line for line in service.heard), "also while it waits for them"


def test_a_canary_that_cannot_start_is_rolled_back(service):
    service.fails = lambda replica, name: "replica 1 is not ready: exit code 1" if name == "new" else ""
    assert service.run() == trial.Outcome(False, "replica 1 is not ready: exit code 1")
    assert service.changes == [(1, "new"), (1, "watched")]


def test_if_it_does_not_start_with_the_old_settings_either_that_is_said(service):
    service.fails = lambda replica, name: f"no GPU for {name}"
    with pytest.raises(
        ToolkitError, match=r"rolled back \(no GPU for new\), but replica 1 does not start again: no GPU"
    ):
        service.run()
    assert service.events()[-1] == ("not rolled back", "no GPU for watched")


@pytest.mark.parametrize(
    ("replica", "said"), [(1, "replica 1 does not serve with them"), (0, "replica 0 does not serve")]
)
def test_a_replica_that_ends_ends_the_trial(service, replica, said):
    def end_soon(number: int, name: str) -> None:
        if (number, name) == (1, "new"):
            ended = service.supervisor.replicas[replica].group
            threading.Timer(0.1, lambda: setattr(ended, "process", object())).start()

    service.during = end_soon
    assert service.run().reason.startswith(said)
    assert service.changes == [(1, "new"), (1, "watched")]


def test_an_interrupt_rolls_back(service):
    gone = threading.Event()
    service.during = lambda *_: gone.set()
    assert service.run(gone.is_set) == trial.Outcome(False, "interrupted")
    assert service.changes == [(1, "new"), (1, "watched")]


def test_after_the_decision_an_interrupt_is_too_late(service):
    decided = threading.Event()
    service.during = traffic(service, 60, 100)
    service.supervisor.events = SimpleNamespace(note=lambda _, event, *more: event == "taken" and decided.set())
    assert service.run(decided.is_set).taken
    assert service.changes == [(1, "new"), (0, "new")]


def test_if_another_replica_cannot_follow_all_go_back(service):
    service.during = traffic(service, 60, 100)
    service.fails = lambda replica, name: "no memory" if (replica, name) == (0, "new") else ""
    assert service.run() == trial.Outcome(False, "no memory")
    assert service.changes == [(1, "new"), (0, "new"), (0, "watched"), (1, "watched")]


def test_when_toolkit_up_ends_nothing_is_restarted(service):
    service.during = lambda *_: setattr(service.supervisor, "ending", True)
    with pytest.raises(trial.Ended):
        service.run()
    assert service.changes == [(1, "new")]


def test_the_time_is_bounded_by_the_traffic(service):
    """10 requests per minute are 5 on each replica: 80 take 16 minutes, twice that is 32. 1,600 take hours."""
    service.keep(0, 10, 100)
    one = Trial(service.supervisor, service.supervisor.replicas[1], service.new, recent(service.old), print, bool)
    one._law = TrialLaw("", one._law.slo.model_copy(update={"ttft_ms": type(service.old.slo.ttft_ms)()}))
    assert (one._law.last_look, one.limit_s) == (80, pytest.approx(2 * 80 / (10 / 60 / 2), rel=0.1))
    one._law = TrialLaw("", service.old.slo)
    assert one.limit_s == trial.LONGEST_S


def refusal(service: Service) -> str:
    with pytest.raises(ToolkitError) as caught:
        service.run()
    assert service.changes == [] and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_replica_that_is_not_well_is_one_line(service):
    service.supervisor.replicas[0].group.enter("loading")
    assert "replica 0 is not ready: loading" in refusal(service)
    service.supervisor.replicas[0].group.enter("ready")
    service.supervisor.replicas[0].deployment = service.new
    assert "replica 0 runs a fallback" in refusal(service)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"parallel": {"replicas": 1}}, "--apply needs two replicas that serve, next to standbys, and there is 1."),
        ({"recovery": {"standby": 1}}, "--apply needs two replicas that serve, next to standbys, and there is 1."),
        ({"gateway": ETCD}, "--apply compares the replicas of one machine, and gateway.discovery names several nodes."),
    ],
)
def test_a_deployment_that_cannot_try_is_one_line(tmp_path, sections, said):
    with pytest.raises(ToolkitError) as caught:
        check_deployment(rehearsal(tmp_path, **sections))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_of_ours_rolls_back_too(service, monkeypatch):
    monkeypatch.setattr(trial_law, "compared", lambda *_: 1 / 0)
    service.during = traffic(service, 60, 100)
    assert service.run() == trial.Outcome(False, "ZeroDivisionError: division by zero")
    assert service.changes == [(1, "new"), (1, "watched")]


def test_without_traffic_there_is_no_trial(tmp_path):
    with pytest.raises(ToolkitError, match=r"monitoring.traffic: missing, and --apply measures by it"):
        recent(rehearsal(tmp_path))
    deployment = rehearsal(tmp_path, monitoring={"traffic": KEPT})
    with pytest.raises(ToolkitError, match=r"kept.jsonl has no request of the last 10 minutes"):
        recent(deployment)
    (tmp_path / KEPT).write_text('{"timestamp": 0, "output_length": 2, "e2e_ms": 5}\n')
    with pytest.raises(ToolkitError, match=r"kept.jsonl has no request of the last 10 minutes"):
        recent(deployment)


def test_only_settings_of_a_server_can_be_tried(tmp_path):
    old = rehearsal(tmp_path)
    assert changes_of(old, rehearsal(tmp_path, kv_cache={"reuse": False})) == {"kv_cache.reuse": False}
    with pytest.raises(ToolkitError, match=r"has the settings that run already"):
        changes_of(old, rehearsal(tmp_path))
    with pytest.raises(ToolkitError, match=r"serving: differs .* Only limits, kv_cache, scheduler may differ"):
        changes_of(old, rehearsal(tmp_path, serving={"drain_timeout_s": 9}))
    limits = {"max_sequences": 8, "max_num_tokens": 300, "max_seq_len": 256}
    with pytest.raises(ToolkitError, match=r"needs other engines than the deployment that is up"):
        changes_of(old, rehearsal(tmp_path, limits=limits))


def test_a_second_command_is_refused_and_the_first_hears_of_an_interrupt(tmp_path, monkeypatch):
    """Over the real socket. The trial lasts until the other end is gone."""
    begun, heard = threading.Event(), list[str]()

    def last(_: Any, command: dict[str, Any], tell: Callable[[str], None], interrupted: Callable[[], bool]) -> Any:
        begun.set()
        tell("tries")
        while not interrupted():
            time.sleep(0.01)
        heard.append("interrupted")
        return trial.Outcome(False, "interrupted")

    monkeypatch.setitem(ROLLS_BACK, TRIAL, last)
    commands = Commands(tmp_path / "s", SimpleNamespace())

    def hear(line: str) -> None:
        heard.append(line)
        if line == "tries":
            with pytest.raises(ToolkitError, match="another command is under way: toolkit tune --apply"):
                send(str(commands.socket), {"do": "restart"}, print)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(str(commands.socket), {"do": "trial"}, hear)
    deadline = time.monotonic() + 30
    while "interrupted" not in heard and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heard == ["tries", "interrupted"]
    commands.close()
