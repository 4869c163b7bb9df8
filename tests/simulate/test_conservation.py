"""What must hold of every run, whatever the deployment: nothing is lost, nothing happens twice, no stage is in two
places at once."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.simulate import Simulation, simulate
from toolkit.simulate import run as module
from toolkit.simulate.replica import Replica
from toolkit.workload import Planned, Traffic

from .steady import Steady, config, prompt

BLOCK = 8


class Watched(Replica):
    """Keeps every replica that a run makes, and looks at its pool at each step."""

    made: list["Watched"] = []  # noqa: RUF012

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.made.append(self)

    def _begin(self, now: float) -> None:
        super()._begin(now)
        stats = self.scheduler.stats()
        assert 0 <= stats.blocks_used <= stats.blocks_max
        assert stats.scheduled <= stats.max


@pytest.fixture(autouse=True, scope="module")
def watched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Replica", Watched)
        yield


@st.composite
def cases(draw):
    """(traffic, scheduler, step times, replicas): small, and often with too few blocks or places in the queue."""
    stages, longest, replicas = draw(st.integers(1, 4)), draw(st.integers(4, 60)), draw(st.integers(1, 3))
    fewest = -(-longest // BLOCK)
    settings = config(
        max_batch_size=draw(st.integers(1, 4)),
        max_num_tokens=draw(st.integers(BLOCK, 64)),
        micro_batches=stages,
        num_blocks=draw(st.integers(fewest, 3 * fewest)),
        policy=draw(st.sampled_from(["guaranteed_no_evict", "max_utilization"])),
        reuse=draw(st.booleans()),
        max_queue_size=draw(st.sampled_from([2, 100])),
        max_seq_len=longest,
    )
    requests, due = [], 0.0
    for number in range(draw(st.integers(1, 25))):
        due += draw(st.sampled_from([0.0, 0.0, 0.3, 2.0]))
        length = draw(st.integers(1, longest - 1))
        common = draw(st.integers(0, length)) if settings.reuse else 0
        tokens = [*range(common), *prompt(number, length - common)]
        requests.append(Planned(due, tokens, draw(st.integers(1, longest - length))))
    users = draw(st.sampled_from([None, 1, 3, 20]))
    if users:
        requests = [request._replace(due=0.0) for request in requests]
    traffic = Traffic(tuple(requests), None if users else 1.0, users, settings.reuse)
    seconds = draw(st.lists(st.sampled_from([0.01, 0.1, 0.35]), min_size=stages, max_size=stages))
    cores = draw(st.sampled_from([None, None, 2]))
    times = Steady(seconds, draw(st.sampled_from([0.0, 0.02])), draw(st.sampled_from([0.0, 0.05])), cores)
    return traffic, settings, times, replicas


@pytest.mark.thorough
@given(cases())
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost(case):
    traffic, scheduling, times, replicas = case
    Watched.made.clear()
    run = simulate(*case, record=(0.0, 1e9))
    assert run.complete and [sample.id for sample in run.samples] == [str(n) for n in range(len(traffic.requests))]
    check_requests(run, traffic)
    check_stages(run, times, replicas)
    last = max((sample.ended for sample in run.samples), default=0.0)
    assert run.seconds == pytest.approx(last, rel=1e-12)  # two sums of the same times, in another order
    assert 0 <= run.kv_mean <= run.kv_peak + 1e-9 <= 1 + 1e-9
    for replica in Watched.made:
        stats = replica.scheduler.stats()
        assert (replica.outstanding, stats.active, stats.blocks_used) == (0, 0, 0)
    if scheduling.policy == "guaranteed_no_evict":
        assert run.recomputed == 0
    emitted = sum(work.emitted for work in times.works)
    assert emitted == sum(sample.tokens_out for sample in run.samples)


def check_requests(run: Simulation, traffic: Traffic) -> None:
    for sample, planned in zip(run.samples, traffic.requests, strict=True):
        assert sample.tokens_out == (planned.output_tokens if sample.ok else 0)
        assert all(before < after for before, after in pairwise(sample.token_times))
        assert sample.due < sample.ended or not sample.ok
        assert traffic.users or sample.due == planned.due
        assert not sample.ok or 0 < sample.prefill_ms <= sample.ttft_ms + 1e-9
    assert run.refused == sum(not sample.ok for sample in run.samples)


def check_stages(run: Simulation, times: Steady, replicas: int) -> None:
    spent = {(replica, stage): 0.0 for replica in range(replicas) for stage in range(times.stages)}
    ordered = sorted(run.intervals)
    for (replica, stage), intervals in groupby(ordered, key=lambda interval: interval[:2]):
        every = list(intervals)
        assert all(before.end <= after.start + 1e-9 for before, after in pairwise(every)), "a stage overlaps"
        spent[replica, stage] = sum(interval.end - interval.start for interval in every)
    for (replica, stage), seconds in spent.items():
        share = run.utilisation[replica][stage]
        assert 0 <= share <= 1 + 1e-9
        assert share * run.seconds == pytest.approx(seconds, abs=1e-6)
    assert -1e-9 <= run.bubble <= 1


def pressed(policy: str, reuse: bool = False, **changed) -> Simulation:
    """Twelve requests of 4 + 4 blocks at once, eight at a time in a pool of 33 blocks."""
    requests = (Planned(0.0, prompt(n, 4 * BLOCK), 4 * BLOCK) for n in range(12))
    traffic = Traffic(tuple(requests), 1.0, None, reuse)
    scheduling = config(max_batch_size=8, num_blocks=33, policy=policy, reuse=reuse, max_num_tokens=256, **changed)
    return simulate(traffic, scheduling, Steady([0.1]))


def test_under_kv_pressure_what_runs_is_never_paused():
    run = pressed("guaranteed_no_evict")
    assert run.recomputed == 0
    assert [sample.tokens_out for sample in run.samples] == [32] * 12
    assert run.kv_peak == 32 / 33  # whole requests of 8 blocks


@pytest.mark.parametrize("reuse", [False, True])
def test_under_kv_pressure_max_utilization_pauses_and_all_end(reuse):
    """With reuse a paused sequence finds its own blocks again, in part; it was paused all the same."""
    run = pressed("max_utilization", reuse)
    assert run.recomputed > 0
    assert [sample.tokens_out for sample in run.samples] == [32] * 12
    assert run.kv_peak == 1


def test_a_pause_before_the_first_token_counts_too():
    """A long prompt in chunks beside a growing sequence, in a pool for one of them and a bit."""
    requests = (Planned(0.0, prompt(0, BLOCK), 4 * BLOCK), Planned(0.0, prompt(1, 12 * BLOCK), 1))
    traffic = Traffic(tuple(requests), 1.0, None, False)
    scheduling = config(max_batch_size=2, num_blocks=14, policy="max_utilization", max_num_tokens=BLOCK + 1)
    times = Steady([0.1])
    run = simulate(traffic, scheduling, times)
    assert sum(work.context_tokens for work in times.works) > 13 * BLOCK, "the prompt was computed more than once"
    assert run.recomputed > 0


def test_what_finds_the_queue_full_is_refused_and_counted():
    requests = tuple(Planned(0.0, prompt(n, 4), 2) for n in range(10))
    run = simulate(Traffic(requests, 1.0, None, False), config(max_queue_size=3), Steady([1.0]))
    assert run.refused == 6 and run.complete  # one runs, three wait
    assert [sample.error for sample in run.samples] == [None] * 4 + ["the queue is full"] * 6
    assert [sample.ended for sample in run.samples] == [2, 4, 6, 8] + [0] * 6
