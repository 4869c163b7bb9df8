"""Faults of GPUs while they serve: what becomes an event, what ends a group, and what a fallback takes over."""

from __future__ import annotations

import json

import pynvml
import pytest

from tests.doctor.fake_nvml import Card, FakeNvml
from tests.monitor.deployments import FLAGSHIP, rehearsal
from toolkit.config.load import load_deployment
from toolkit.gateway.door import folder
from toolkit.machine import gpu_health
from toolkit.machine.gpu_faults import EFFECTS, RECOVERIES, XIDS, xid_effect
from toolkit.machine.gpu_health import RECOVERIES as READ
from toolkit.machine.kernel_log import Kernel, parse_xids
from toolkit.up import replica as replicas
from toolkit.up.events import Events
from toolkit.up.fallback import MARKER
from toolkit.up.gpu_watch import CLEAR, HOLD, KERNEL_EVERY, Doubt, GpuWatch
from toolkit.up.replica import Replica

BUS = "PCI:0000:4b:00"  # of GPU 3 of the double
HEAT = pynvml.nvmlClocksThrottleReasonSwThermalSlowdown


class Watched:
    """A watch over eight GPUs, their cards, the kernel's log and the events."""

    def __init__(self, tmp_path, monkeypatch) -> None:
        self.nvml, self.log = FakeNvml([Card() for _ in range(8)]), ""
        monkeypatch.setattr(gpu_health, "load_library", lambda: self.nvml)
        self.file = tmp_path / "events.jsonl"
        self.told = True
        self.watch = GpuWatch(
            load_deployment(FLAGSHIP),
            Events(tmp_path),
            lambda: Kernel(self.told, tuple(parse_xids(self.log))) if self.told else Kernel(),
        )

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.watch.look()

    @property
    def events(self) -> list[tuple[str, str, str]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [(one["part"], one["event"], one.get("cause", "")) for one in map(json.loads, lines)]

    def doubts(self) -> list[Doubt]:
        found = []
        while not self.watch.doubts.empty():
            found.append(self.watch.doubts.get())
        return found


@pytest.fixture
def watched(tmp_path, monkeypatch):
    return Watched(tmp_path, monkeypatch)


def test_gpus_of_other_nodes_are_an_event_as_nobody_watches_them(tmp_path):
    nodes = {"parallel": {"tp": 1, "pp": 2, "nodes": 2}, "cluster": {"hosts": ["node-a", "node-b"]}}
    for name, changes, events in (("one", {}, 0), ("two", nodes, 1)):
        (tmp_path / name).mkdir()
        watch = GpuWatch(rehearsal(tmp_path / name, **changes), Events(tmp_path / name))
        watch.start()
        watch.close()
        file = tmp_path / name / "events.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        assert len(lines) == events
        assert all((one["event"], one["cause"][-6:]) == ("not watched", "node-b") for one in lines)


def test_healthy_gpus_are_no_event(watched):
    watched.look(9)
    assert watched.events == [] and watched.watch.lost == {} and not watched.doubts()


def test_a_hot_gpu_is_an_event_once_it_stays_hot_and_another_when_it_has_cooled(watched):
    card = watched.nvml.cards[3]
    card.celsius = 91
    watched.look(HOLD["hot"] - 1)
    card.celsius = 70
    watched.look()
    assert watched.events == [], "a moment of heat"
    card.celsius = 91
    watched.look(20)
    assert watched.events == [("GPU 3", "hot", "91 degrees")]
    card.celsius = 70
    watched.look(CLEAR)
    assert watched.events[1:] == [("GPU 3", "hot: over", "")]
    assert watched.watch.lost == {}, "the group goes on"


def test_a_throttled_gpu_is_an_event_with_the_reason(watched):
    watched.nvml.cards[3].throttle_mask = HEAT
    watched.look(HOLD["throttled"])
    assert watched.events == [("GPU 3", "throttled", "slowed down: heat")]


def test_a_gpu_that_nvml_cannot_read_is_lost(watched):
    watched.look()
    watched.nvml.lost = 3
    watched.look(3)
    assert list(watched.watch.lost) == [3]
    assert [(part, event) for part, event, _ in watched.events] == [("GPU 3", "does not answer")]


@pytest.mark.parametrize(
    ("action", "lost"), [("NONE", False), ("DRAIN_P2P", False), ("GPU_RESET", True), ("NODE_REBOOT", True)]
)
def test_the_driver_says_by_nvml_what_it_wants(watched, action, lost):
    """Also in a container, where nobody can read the kernel's log."""
    watched.told = False
    number = getattr(pynvml, f"NVML_GPU_RECOVERY_ACTION_{action}")
    watched.nvml.cards[3].fields = {pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: number}
    watched.look()
    assert (3 in watched.watch.lost) is lost
    assert len(watched.events) == (action != "NONE")


def test_rows_of_memory(watched):
    watched.nvml.cards[2].rows = (0, 1, 1, 0)
    watched.nvml.cards[3].rows = (0, 8, 0, 1)
    watched.look()
    assert {event for _, event, _ in watched.events} == {"row remapping pending", "row remapping failed"}
    assert list(watched.watch.lost) == [3]


def test_errors_that_ecc_could_not_correct_are_an_event_when_there_are_more(watched):
    watched.nvml.cards[3].ecc = 2
    watched.look(2)
    assert watched.events == [], "from before"
    watched.nvml.cards[3].ecc = 3
    watched.look(2)
    assert [event for _, event, _ in watched.events] == ["uncorrected errors rise"] and watched.watch.lost == {}


def xid_line(code: int, text: str = "pid=4711, name=tritonserver, something") -> str:
    return f"[1.5] NVRM: Xid ({BUS}): {code}, {text}\n"


def test_xids_from_before_are_not_counted_and_each_new_one_once(watched):
    watched.log = xid_line(79)
    watched.look(KERNEL_EVERY)
    assert watched.events == []
    watched.log += xid_line(94)
    watched.look(3 * KERNEL_EVERY)
    assert [event for _, event, _ in watched.events] == ["Xid 94"]
    assert watched.doubts() == [Doubt(3, "GPU 3: Xid 94: memory error, contained to one program", 4711)]
    watched.log = xid_line(94)  # the log is a ring: the oldest line is gone
    watched.look(KERNEL_EVERY)
    watched.log += xid_line(94)
    watched.look(KERNEL_EVERY)
    assert len(watched.doubts()) == 1


def test_an_xid_that_needs_a_reset_loses_the_gpu_until_an_operator_says_otherwise(watched):
    watched.look()
    watched.log = xid_line(79, "GPU has fallen off the bus.")
    watched.look(KERNEL_EVERY)
    assert watched.watch.lost == {3: "Xid 79: the GPU has fallen off the bus"}
    watched.watch.forget()
    watched.look(2 * KERNEL_EVERY)
    assert watched.watch.lost == {}


def test_a_log_that_cannot_be_read_for_a_while(watched):
    watched.told = False
    watched.log = xid_line(79)
    watched.look(KERNEL_EVERY)
    watched.told = True
    watched.look(2 * KERNEL_EVERY)
    assert watched.watch.lost == {}, "the first log that was read may be old"


def test_the_effects_follow_nvidia_s_catalogue_or_say_why_not():
    """Samples from docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, column of H100."""
    catalogue = {13: "RESTART_APP", 43: "IGNORE", 63: "IGNORE", 64: "RESET_GPU", 79: "RESTART_BM", 94: "RESTART_APP"}
    catalogue |= {95: "RESET_GPU", 109: "RESET_GPU", 119: "RESET_GPU", 120: "RESET_GPU", 140: "RESET_GPU"}
    assert {code: XIDS[code].nvidia for code in catalogue} == catalogue
    for code, fault in XIDS.items():
        assert fault.effect == EFFECTS.get(fault.nvidia) or fault.why, code
    assert set(RECOVERIES) == set(READ)
    assert all(hasattr(pynvml, f"NVML_GPU_RECOVERY_ACTION_{name}") for name in READ)


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", "lost"),
        ("GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)", "ignore"),
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", "lost"),
        ("GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", "ignore"),
        ("something else", "ignore"),
    ],
)
def test_xid_154_names_its_action(text, effect):
    assert xid_effect(154, text) == effect


def test_the_file_of_a_rehearsal(tmp_path):
    deployment = rehearsal(tmp_path)
    folder(deployment).mkdir(parents=True)
    watch = GpuWatch(deployment, Events(folder(deployment)))
    watch.look()
    assert watch.lost == {}
    (folder(deployment) / MARKER).write_text("3, 9")
    watch.look()
    assert watch.lost == {3: "marked as lost in this rehearsal"}
    (folder(deployment) / MARKER).unlink()
    watch.look()
    assert watch.lost == {}


class Group:
    """In the place of a group's process: it counts the signals."""

    pid, stdin = 1, None

    def __init__(self) -> None:
        self.signals, self.code = 0, None

    def poll(self):
        return self.code

    def terminate(self) -> None:
        self.signals += 1


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """The second of two replicas of two ranks, with a fallback for one GPU, as if it served."""
    deployment = rehearsal(tmp_path)
    folder(deployment).mkdir(parents=True)
    made = Replica(deployment.per_replica()[1], {}, tmp_path, Events(tmp_path))
    made.group.process = Group()
    made.group.enter("ready")
    monkeypatch.setattr(replicas.fallback, "lost_gpus", lambda deployment: ())
    monkeypatch.setattr(made, "_has_process", lambda pid: pid == 4711)
    made.fallbacks = (rehearsal(tmp_path, parallel={"tp": 1}),)
    return made


def test_a_lost_gpu_ends_the_group_on_it_at_once_and_the_fallback_takes_over(serving):
    group = serving.group.process
    serving.heed_lost({0: "of the other replica"})
    assert serving.ready
    serving.heed_lost({3: "Xid 79"})
    assert serving.group.phase == "unresponsive" and not serving.ready, "no request goes there any more"
    serving._look_at_group()
    serving._look_at_group()
    assert group.signals == 2, "the second one ends it without a drain"
    group.code = 0
    serving._look_at_group()
    assert serving.deployment is serving.fallbacks[0] and serving.group.phase == "waiting"
    serving.heed_lost({3: "Xid 79"})
    assert serving.group.phase == "waiting"


def test_without_a_fallback_that_fits_a_lost_gpu_ends_nothing(serving):
    """The group may still answer. If not, the canary ends it."""
    serving.fallbacks = ()
    serving.heed_lost({3: "Xid 64"})
    assert serving.ready


@pytest.mark.parametrize(("gpu", "pid", "ends"), [(3, 4711, True), (3, None, True), (3, 1, False), (0, 4711, False)])
def test_a_fault_of_a_program_ends_the_group_only_if_it_is_the_group_s(serving, gpu, pid, ends):
    serving.heed_doubt(Doubt(gpu, "GPU 3: Xid 94", pid))
    assert serving.ready is not ends
