"""What follows from the settings by arithmetic, and settings that cannot be."""

from __future__ import annotations

import pytest

from toolkit.errors import ToolkitError
from toolkit.known_truth import KnownTruth, Settings
from toolkit.known_truth.faults import KINDS

PACED = Settings(ttft_ms=200, itl_ms=20)


def test_tokens_are_due_on_an_absolute_schedule():
    assert [PACED.due_s(token) for token in (0, 1, 99)] == pytest.approx([0.2, 0.22, 2.18])


def test_tokens_of_an_event_are_due_with_its_first():
    several = Settings(ttft_ms=200, itl_ms=20, tokens_per_event=3)
    assert [several.due_s(token) for token in range(5)] == pytest.approx([0.2, 0.2, 0.2, 0.26, 0.26])


def test_a_slow_answer_takes_ten_times_as_long_from_where_it_gets_slow():
    assert [PACED.due_s(token, slow_from=1) for token in range(4)] == pytest.approx([0.2, 0.22, 0.42, 0.62])


def test_capacity():
    """4 slots, each 200 + 40 x 20 = 1000 ms an answer; without slots nothing limits it."""
    assert Settings(slots=4).capacity(41) == pytest.approx(4.0)
    assert PACED.capacity(41) == float("inf")


def test_length():
    ended = Settings(tokens=30)
    assert (PACED.length(50), ended.length(50), ended.length(20)) == (50, 30, 20)
    assert (ended.length(50, min_tokens=40), ended.length(50, ignore_eos=True)) == (40, 50)


def test_faults_depend_on_the_seed_and_the_number_alone():
    def befallen(seed: int) -> list[int]:
        plan = Settings(faults=("hang:0.2",), seed=seed).fault_plan()
        return [number for number in range(1, 1001) if plan.of(number)]

    assert befallen(1) == befallen(1) != befallen(2)
    assert 150 < len(befallen(1)) < 250


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"die"}))
def test_every_fault_can_be_asked_for(kind):
    fault = Settings(faults=(f"{kind}::3",)).fault_plan().of(1)
    assert fault and (fault.kind, fault.after) == (kind, 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ttft_ms": -1.0}, "--ttft-ms: -1.0 is not milliseconds from 0 to 1e+07"),
        ({"itl_ms": float("nan")}, "--itl-ms: nan is not milliseconds"),
        ({"slots": 0}, "--slots: 0 is not a whole number from 1"),
        ({"tokens_per_event": 0}, "--tokens-per-event: 0 is not"),
        ({"http_port": 65536}, "--http-port: 65536 is not a port"),
        ({"host": ""}, "--host: '' is not an address or a host name. Use 127.0.0.1"),
        ({"host": "a" * 300}, "--host: 'aaa"),
        ({"host": "a..b"}, "--host: 'a..b' is not an address or a host name"),
        ({"faults": ("hank",)}, "--fault hank: 'hank' is not a kind of fault. Did you mean hang?"),
        ({"faults": ("hang:2",)}, "--fault hang:2: cannot be read. Write hang[:SHARE][:AFTER_TOKENS]"),
        ({"faults": ("hang:nan",)}, "--fault hang:nan: cannot be read"),
        ({"faults": ("hang:1:2:3",)}, "--fault hang:1:2:3: cannot be read"),
        ({"faults": ("die",)}, "--fault die: cannot be read. Write die:REQUESTS."),
        ({"faults": ("hang:0.6", "slow:0.6")}, "--fault: the shares add up to 1.2, expected at most 1"),
    ],
)
def test_wrong_settings_are_one_line(wrong, said):
    with pytest.raises(ToolkitError) as caught:
        Settings(**wrong)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_server_without_grpc():
    with KnownTruth(Settings(grpc_port=None)) as server:
        assert server.http.startswith("http://127.0.0.1:") and server.grpc == ""
