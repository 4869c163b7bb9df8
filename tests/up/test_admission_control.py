"""How many requests the door lets in: the law by hand, the law before a simulated deployment, and its controller."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.monitor.deployments import rehearsal
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.limits import CLUSTERS, Counts
from toolkit.gateway.places import Places
from toolkit.monitor.signals import EngineSignals, Seen
from toolkit.plan.predict import predict
from toolkit.up import admission
from toolkit.up.admission import Admission, FixedLimit
from toolkit.up.admission_bounds import bounds
from toolkit.up.admission_law import AdmissionLaw, Bounds, Change, QueueAge, Signals
from toolkit.up.dry_run import dry_run
from toolkit.up.events import Events

ROOT = Path(__file__).parents[2]
AUTO = {"admission": "auto"}


def law(limit: int = 20, floor: int = 4, ceiling: int = 40) -> AdmissionLaw:
    return AdmissionLaw(Bounds(floor, ceiling, ttft_s=1.0), limit, window_s=10.0)


def full(limit: int, age: float = 0.0, **more: float) -> Signals:
    """The door is full, and has refused three."""
    return Signals(active=limit, refused=3, queue_age_s=age, **more)


def test_it_falls_to_four_fifths_when_the_queue_is_old_in_two_looks():
    """0.5 x 1 s is the oldest that is allowed. 20 x 0.8 = 16."""
    one = law()
    assert one.step(0.0, full(20, age=0.6)) is None, "one look may be between two steps of the engine"
    change = one.step(1.0, full(20, age=0.6))
    assert change == Change(20, 16, "the oldest request waits for 0.60 s, and 0.50 s are allowed")


def test_after_a_fall_it_waits_for_the_effect():
    """16 x 0.8 = 12.8 two seconds later, then 12 x 0.8 = 9.6."""
    one = law()
    limits = []
    for second in range(6):
        one.step(float(second), full(20, age=2.0))
        limits.append(one.limit)
    assert limits == [20, 16, 16, 12, 12, 9], "what is in the door is more than the limit, so it falls from the limit"


def test_it_falls_from_what_is_in_the_door_and_never_below_the_floor():
    one = law(limit=40)
    for second in (0.0, 1.0):
        one.step(second, Signals(active=10, refused=0, queue_age_s=0.9))
    assert one.limit == 8
    for second in range(2, 40):
        one.step(float(second), full(40, age=9.0))
    assert one.limit == 4


def test_it_rises_by_a_sixteenth_while_it_holds_back_requests_and_nothing_waits():
    """20 + 1, four seconds later 21 + 1; 32 + 2 from 32 on."""
    one, seen = law(), {}
    for second in range(0, 61):
        change = one.step(float(second), full(one.limit))
        if change:
            seen[second] = change.limit
    assert list(seen.items())[:3] == [(0, 21), (4, 22), (8, 23)]
    assert seen[48] == 34 and max(seen.values()) <= 40


@pytest.mark.parametrize(
    "signals",
    [
        Signals(active=10, refused=0, queue_age_s=0.0),  # nobody was held back
        full(20, age=0.3),  # between the thresholds 0.2 and 0.5
        full(20, ttft_s=0.95),  # between 0.9 and 1
        full(20, kv_used=0.96),
    ],
)
def test_between_the_thresholds_it_stays(signals):
    one = law()
    assert [one.step(float(second), signals) for second in range(10)] == [None] * 10


def test_a_slow_ttft_makes_it_fall_once_for_each_window():
    """TTFT is that of 10 s, and what ends within 3 s after a fall waited before it."""
    one, falls = law(), []
    for second in range(30):
        if one.step(float(second), Signals(active=20, refused=1, queue_age_s=0.0, ttft_s=1.2, answer_s=3.0)):
            falls.append((second, one.limit))
    assert falls == [(0, 16), (13, 12), (26, 9)]


def test_other_bounds_take_the_limit_along():
    one = law(limit=30)
    one.rebound(Bounds(4, 25, 1.0))
    assert one.limit == 25
    one.rebound(Bounds(28, 60, 1.0))
    assert one.limit == 28


def test_the_age_of_the_queue_by_hand():
    """Ten requests per second; at 3 s six of the 30 wait. Number 25 came at 2.5 s, so the oldest waits for 0.5 s."""
    age = QueueAge()
    assert age.seen(0.0, 0, 0) == 0.0
    assert age.seen(1.0, 10, 0) == 0.0
    assert age.seen(2.0, 20, 0) == 0.0
    assert age.seen(3.0, 30, 6) == pytest.approx(0.5)
    assert age.seen(4.0, 30, 6) == pytest.approx(1.5), "nothing moves"
    assert age.seen(5.0, 30, 0) == 0.0


def test_a_queue_from_before_the_first_look_is_as_old_as_the_looks():
    age = QueueAge()
    age.seen(10.0, 50, 20)
    assert age.seen(12.0, 50, 20) == pytest.approx(2.0)


# The bounds


def test_without_a_plan_the_yaml_says_the_bounds(tmp_path):
    """8 sequences at once, and a queue of 256; a quarter of 8 is 2, one for each replica."""
    assert bounds(rehearsal(tmp_path, tuning=AUTO)) == (Bounds(2, 8 + 256, 1.5, 99), 8)


def test_the_plan_s_capacity_says_the_bounds(tmp_path):
    """2 requests/s x 3 s run at once = 6. In 1.5 s 3 more are served: 8 + 3 = 11."""
    assert bounds(rehearsal(tmp_path, tuning=AUTO), 2.0, 3.0) == (Bounds(2, 11, 1.5, 99), 6)
    assert bounds(rehearsal(tmp_path, tuning=AUTO), 2.0, float("inf")) == (Bounds(2, 11, 1.5, 99), 8)
    for unknown in ((None, None), (float("inf"), 1.0)):
        assert bounds(rehearsal(tmp_path, tuning=AUTO), *unknown)[0].ceiling == 8 + 256


def test_the_yaml_s_own_bounds_count(tmp_path):
    tuning = {**AUTO, "admission_floor": 12, "admission_ceiling": 20}
    assert bounds(rehearsal(tmp_path, tuning=tuning), 2.0, 3.0) == (Bounds(12, 20, 1.5, 99), 12)


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"admission": "on"}, "tuning.admission: input should be 'auto' or 'off', got 'on'"),
        ({**AUTO, "admission_floor": 0}, "tuning.admission_floor: input should be greater than 0, got 0"),
        ({**AUTO, "admission_floor": 9, "admission_ceiling": 8}, "admission_floor: 9 is more than tuning.admission_ce"),
        ({**AUTO, "admission_ceiling": 999}, "tuning.admission_ceiling: 999 is more than the 264 requests that the"),
        ({"admission_floor": 4}, "tuning.admission_floor: 4 has no effect with admission: off"),
        ({**AUTO, "floor": 4}, "tuning.floor: unknown key"),
    ],
)
def test_wrong_bounds_are_one_line(tmp_path, tuning, said):
    with pytest.raises(ToolkitError) as caught:
        rehearsal(tmp_path, tuning=tuning)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_limit_of_ttft_there_is_nothing_to_keep(tmp_path):
    with pytest.raises(ToolkitError, match=r"tuning.admission: auto keeps slo.ttft_ms, and the YAML has no such limit"):
        rehearsal(tmp_path, tuning=AUTO, slo={"itl_ms": {"p99": 100}})


def test_one_machine_cannot_speak_for_a_door_of_several(tmp_path):
    tls = {"ca": "ca.pem", "certificate": "node.pem", "key": "node-key.pem"}
    gateway = {"discovery": "etcd://10.0.0.1:2379", "interface": "eth1", "node_tls": tls}
    with pytest.raises(
        ToolkitError, match=r"tuning.admission: auto looks at the replicas of this machine, .* Use off\."
    ):
        rehearsal(tmp_path, tuning=AUTO, gateway=gateway)


# Before a simulated deployment


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("admission_benchmark", ROOT / "benchmarks/admission.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_in_an_overload_who_is_let_in_is_served_in_time(benchmark):
    """At 1.5 times what is served at most, with the scheduler and the step times of the plan."""
    prediction = predict(load_deployment(benchmark.FLAGSHIP))
    capacity = prediction.capacity.saturated
    best = max(benchmark.simulated(prediction, capacity * share, 100, None)[0].goodput for share in (0.8, 0.9))
    without, _ = benchmark.simulated(prediction, capacity * 1.5, 100, None)
    limits, start = benchmark.bounds_of(prediction)
    adapted, _ = benchmark.simulated(prediction, capacity * 1.5, 100, AdmissionLaw(limits, start, 10.0))
    assert without.inside < 0.05
    assert adapted.inside >= 0.95 and adapted.goodput >= 0.9 * best


# The controller


@pytest.fixture
def controller(tmp_path) -> Admission:
    deployment = rehearsal(tmp_path, tuning={**AUTO, "admission_floor": 4}, gateway={"max_requests": 40})
    return Admission(deployment, Places(tmp_path, tmp_path, 1, 2), Events(tmp_path))


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def counted(active: int, admitted: int, refused: int = 0) -> dict[str, Counts]:
    return {**dict.fromkeys(CLUSTERS, Counts()), "front": Counts(active, admitted, refused)}


def limit_in(folder: Path) -> int:
    return int((folder / "limits/admission.yaml").read_text().partition("front.default.max_requests: ")[2].split()[0])


def test_each_change_is_an_event_with_its_cause_and_a_file_for_envoy(controller, tmp_path):
    assert limit_in(tmp_path) == controller.state.limit == 8
    controller.look(0.0, counted(3, 8), Seen(2, 0.5, None, 0.0))
    for second in (1, 2):
        controller.look(float(second), counted(8, 8 + second, refused=5 * second), Seen(2, 0.5, None, 0.0))
    assert controller.state.limit == 6 == limit_in(tmp_path)
    (event,) = events(tmp_path)
    assert (event["part"], event["event"], event["limit"]) == ("admission", "limit", 6)
    assert "oldest request waits" in event["cause"] and event["action"] == "lets in 6 requests, before 8"
    assert (controller.state.refused, controller.state.falls, controller.state.rises) == (10, 1, 0)


def test_after_a_restart_the_new_plan_says_the_bounds(controller, tmp_path, monkeypatch):
    """The old plan: 2 requests/s within 1.5 s, so 8 + 3. The new one: 4 sequences and 10 requests/s, so 4 + 15."""
    closed: list[str] = []

    class Known:
        def __init__(self, deployment: Deployment) -> None:
            self.sequences = deployment.limits.max_sequences

        def capacity(self) -> tuple[float, float]:
            return {8: (2.0, 3.0), 4: (10.0, 0.5)}[self.sequences]

        def close(self) -> None:
            closed.append(str(self.sequences))

    monkeypatch.setattr(admission, "Predictions", Known)
    deployment = rehearsal(tmp_path, tuning=AUTO)
    first = Admission(deployment, Places(tmp_path, tmp_path, 1, 2), Events(tmp_path))
    first._plan = Known(deployment)
    first._take_the_deployment()
    first._take_the_plan()
    assert (first.state.floor, first.state.ceiling) == (2, 11)
    limits = {"max_sequences": 4, "max_num_tokens": 256, "max_seq_len": 256}
    first.serves(rehearsal(tmp_path, tuning=AUTO, limits=limits))
    first._take_the_deployment()
    assert first.state.ceiling == 11, "the old bounds stay until the new plan is known"
    first._take_the_plan()
    assert (first.state.floor, first.state.ceiling, first.state.limit) == (2, 19, 8)
    first._take_the_deployment()
    assert closed == ["8", "4"], "each plan is computed once"
    assert [event["event"] for event in events(tmp_path)] == ["bounds", "bounds"]


def test_a_new_envoy_counts_from_0_and_nothing_is_counted_twice(controller):
    controller.look(0.0, counted(1, 10, refused=7), Seen(0, None, None, 0.0))
    controller.look(1.0, counted(1, 1, refused=2), Seen(0, None, None, 0.0))
    assert controller.state.refused == 9


def test_while_no_replica_answers_the_limit_stays(controller):
    for second in range(20):
        controller.look(float(second), counted(3, 50), Seen(None, None, None, 0.0))
    assert controller.state.limit == 8


def test_on_a_full_disk_the_limit_of_before_stays_and_one_event_says_so(controller, tmp_path, monkeypatch):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(admission, "write_limits", no_space)
    for second in range(9):
        controller.look(float(second), counted(8, 8), Seen(2, 0.5, None, 0.0))
    assert [event["event"] for event in events(tmp_path)].count("not changed") == 1
    assert limit_in(tmp_path) == 8


TRITON = """
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active"} 9
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting"} 3
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm"} 30
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm"} 40
"""


def test_the_signals_of_two_replicas_and_the_front_end(tmp_path):
    """50 of OpenAI's requests and 50 of Triton's within 10 s: the 99th of 100 is in the bucket of the slow ones."""
    pages, clock = {}, iter(range(100))

    def read(url: str) -> str:
        if ":1/" in url:
            count = 50 if pages else 0
            return "".join(
                f'dynamo_frontend_time_to_first_token_seconds_bucket{{le="{le}"}} {n}\n'
                for le, n in (("0.5", count), ("2", count), ("+Inf", count))
            )
        count = 50 if pages else 0
        slow = 2 if pages else 0
        return TRITON + "".join(
            f'toolkit_time_to_first_token_seconds_bucket{{model="tensorrt_llm_bls",le="{le}"}} {n}\n'
            for le, n in (("0.5", count - slow), ("2", count), ("+Inf", count))
        )

    one = EngineSignals(rehearsal(tmp_path, tuning=AUTO), "http://127.0.0.1:1/metrics", read, lambda: next(clock))
    assert one.look() == Seen(6, 0.75, None, 0.0)
    pages["now"] = True
    waiting, kv_used, ttft_s, _ = one.look()
    assert (waiting, kv_used) == (6, 0.75) and ttft_s == pytest.approx(0.5 + 1.5 * (148.5 - 146) / 4)


def test_without_a_controller_the_limit_is_what_the_replicas_that_run_can_take(tmp_path):
    limits = {"max_num_tokens": 256, "max_seq_len": 256, "max_queue_size": 10}
    first, second = (rehearsal(tmp_path, limits={**limits, "max_sequences": most}) for most in (8, 16))
    fixed = FixedLimit(first, Places(tmp_path, tmp_path, 1, 2), Events(tmp_path))
    assert limit_in(tmp_path) == 18
    fixed.serves(second)
    assert limit_in(tmp_path) == 26


def test_a_dry_run_has_envoy_s_file(tmp_path):
    text = dry_run(rehearsal(tmp_path, tuning=AUTO))
    assert "circuit_breakers.front.default.max_requests: 8" in text and "rtds_layer" in text
    text = dry_run(rehearsal(tmp_path))
    assert "circuit_breakers.front.default.max_requests: 264" in text, "8 that run, and 256 that wait"
