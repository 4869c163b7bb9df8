"""Several replicas, and users who wait for their answers: who gets which request, and when the next one comes."""

import random
import statistics
from itertools import accumulate

import pytest

from toolkit.simulate import Simulation, simulate
from toolkit.steptimes.step import StepWork
from toolkit.workload import Planned, Traffic

from .steady import Steady, config, due_at, prompt


def by_replica(run: Simulation) -> dict[int, list[float]]:
    """The starts of the steps of each replica's first stage."""
    starts: dict[int, list[float]] = {}
    for interval in run.intervals:
        starts.setdefault(interval.replica, []).append(interval.start)
    return starts


def test_two_replicas_at_constant_twice_the_rate_are_two_of_one():
    """Request after request to either in turn: exactly what one alone does at the rate."""
    one = simulate(due_at([n * 0.8 for n in range(500)], output_tokens=3), config(), Steady([0.25]))
    two = simulate(due_at([n * 0.4 for n in range(1000)], output_tokens=3), config(), Steady([0.25]), replicas=2)
    assert two.seconds == pytest.approx(one.seconds + 0.4)
    for q in (50, 90, 99):
        for metric in ("ttft_ms", "e2e_ms"):
            alone, both = (run.measured({}).distributions[metric].percentile(q) for run in (one, two))
            assert both == pytest.approx(alone)
    assert [shares[0] for shares in two.utilisation] == pytest.approx([one.utilisation[0][0]] * 2, rel=0.01)


@pytest.mark.thorough
def test_two_replicas_at_twice_the_rate_have_the_latencies_of_one():
    """A batch of up to 32 whose steps all take the same time hardly queues: only noise is between them."""

    def run(rate: float, replicas: int) -> Simulation:
        rnd = random.Random(5)
        dues = list(accumulate(rnd.expovariate(rate) for _ in range(2000 * replicas)))
        traffic = due_at(dues, prompt_tokens=8, output_tokens=20)
        return simulate(traffic, config(max_batch_size=32, max_num_tokens=512), Steady([0.05]), replicas)

    one, two = run(10, 1), run(20, 2)
    for metric in ("ttft_ms", "e2e_ms"):
        for q in (50, 90, 99):
            alone, both = (each.measured({}).distributions[metric].percentile(q) for each in (one, two))
            assert both == pytest.approx(alone, rel=0.05), (metric, q)


def test_a_request_goes_to_the_replica_with_the_fewest_outstanding():
    """A long request occupies the first; three short ones after it go to the second until it has as many."""
    lengths = (20, 1, 1, 1)
    requests = tuple(Planned(n / 10, prompt(n, 1), length) for n, length in enumerate(lengths))
    run = simulate(Traffic(requests, 1.0, None, False), config(), Steady([0.25]), 2, record=(0, 1e9))
    starts = by_replica(run)
    # At 0.1 the second is empty, at 0.2 both have one and the first in number takes it, at 0.3 the second.
    assert starts[1] == pytest.approx([0.1, 0.35])
    assert len(starts[0]) == 21


class Uneven(Steady):
    """Choosing the tokens of more sequences takes longer."""

    def finish_seconds(self, work: StepWork) -> float:
        return 0.03 * work.emitted


def closed(users: int, count: int, replicas: int = 1, cores: int | None = None, batch: int = 2) -> tuple:
    rnd = random.Random(3)
    requests = tuple(Planned(0.0, prompt(n, rnd.randint(1, 40)), rnd.randint(1, 12)) for n in range(count))
    times = Uneven([0.1], cores=cores)
    return simulate(Traffic(requests, None, users, False), config(max_batch_size=batch), times, replicas), requests


@pytest.mark.parametrize("cores", [None, 1])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("users", [1, 4, 9])
def test_a_closed_loop_has_as_many_outstanding_as_users(users, replicas, cores):
    run, requests = closed(users, 120, replicas, cores)
    moments = [(s.due, 1) for s in run.samples] + [(s.ended, -1) for s in run.samples]
    outstanding = list(accumulate(change for _, change in sorted(moments)))
    assert max(outstanding) == users
    # Each begins at the moment in which an earlier one ended: the users' next ones, in the order of the ends.
    ends = sorted(sample.ended for sample in run.samples)
    assert [sample.due for sample in run.samples] == [0.0] * users + ends[: len(requests) - users]


def test_littles_law():
    """Outstanding = throughput x time in the system, in a closed loop whose users never rest."""
    run, _ = closed(8, 2000, batch=4)
    judged = run.samples[100:-100]
    seconds = judged[-1].due - judged[0].due
    mean_stay = statistics.fmean(sample.e2e_ms / 1e3 for sample in judged)
    assert len(judged) / seconds * mean_stay == pytest.approx(8, rel=0.02)


def test_the_first_requests_are_warm_up():
    run, _ = closed(8, 100)
    assert (run.warmup, len(run.judged)) == (8, 92)
    opened = simulate(due_at([n * 1.0 for n in range(100)]), config(), Steady([0.1]))
    assert (opened.warmup, opened.judged[0].due) == (5, 5.0)


def test_users_return_in_the_order_of_their_answers():
    """Two sequences on the first replica end at 0.16 s, one on the second at 0.13 s: that user is next, at 0.13 s."""
    requests = tuple(Planned(0.0, prompt(n, 1), 1) for n in range(6))
    times = Uneven([0.1], cores=1)
    run = simulate(Traffic(requests, None, 3, False), config(max_batch_size=2), times, replicas=2)
    assert [sample.due for sample in run.samples] == pytest.approx([0, 0, 0, 0.13, 0.16, 0.16])
