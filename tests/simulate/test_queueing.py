"""The simulator against queueing theory and against schedules worked out by hand."""

import random
import statistics
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest

from toolkit.simulate import Simulation, simulate
from toolkit.workload import Traffic

from .steady import Steady, config, due_at

SERVICE = 0.1
REQUESTS = 20_000


def poisson(rate: float, count: int = REQUESTS, seed: int = 1) -> list[float]:
    rnd = random.Random(seed)
    return list(accumulate(rnd.expovariate(rate) for _ in range(count)))


def waits(run: Simulation) -> list[float]:
    """Seconds from due to the first step."""
    return [(sample.ttft_ms - sample.prefill_ms) / 1e3 for sample in run.samples]


@pytest.mark.thorough
@pytest.mark.parametrize(("rho", "within"), [(0.5, 0.04), (0.8, 0.08)])
def test_the_mean_wait_is_that_of_m_d_1(rho, within):
    """Pollaczek-Khinchine: rho s / 2 (1 - rho). Of 20,000 requests that has a standard error of 1.9 and 4.0 %."""
    dues = poisson(rho / SERVICE)
    run = simulate(due_at(dues), config(), Steady([SERVICE]))
    rho = REQUESTS * SERVICE / dues[-1]  # of this sample of arrivals
    assert statistics.fmean(waits(run)) == pytest.approx(rho * SERVICE / (2 * (1 - rho)), rel=within)
    assert run.utilisation[0][0] == pytest.approx(rho, rel=0.01)
    assert run.bubble == pytest.approx(0)


def test_each_wait_follows_lindleys_recursion():
    """Not a mean: the wait of a request is that of the one before it, plus its service, less the time between."""
    dues = poisson(0.8 / SERVICE, 3000)
    expected = [0.0]
    for before, due in pairwise(dues):
        expected.append(max(0.0, expected[-1] + SERVICE - (due - before)))
    run = simulate(due_at(dues), config(), Steady([SERVICE]))
    assert waits(run) == pytest.approx(expected, abs=1e-9)


def test_constant_arrivals_below_the_service_rate_never_wait():
    dues = [number * SERVICE / 0.99 for number in range(2000)]
    run = simulate(due_at(dues), config(), Steady([SERVICE]))
    assert max(waits(run)) == pytest.approx(0, abs=1e-9)
    assert run.seconds == pytest.approx(dues[-1] + SERVICE)


def burst(prompts: int, times: Steady) -> Simulation:
    """Prompts that are all there at once, each a step of its own and a whole one."""
    traffic = due_at([0.0] * prompts, prompt_tokens=16)
    return simulate(traffic, config(max_num_tokens=16, micro_batches=times.stages), times, record=(0.0, 1e9))


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("prompts", [1, 2, 4, 8, 16])
def test_a_burst_through_equal_stages_fills_and_drains(prompts, stages):
    """(m + p - 1) t, of which a stage idles p - 1."""
    run = burst(prompts, Steady([0.25] * stages))
    assert run.seconds == (prompts + stages - 1) * 0.25
    assert run.bubble == pytest.approx((stages - 1) / (prompts + stages - 1), abs=1e-12)
    assert [sample.ended for sample in run.samples] == [(stages + number) * 0.25 for number in range(prompts)]


@pytest.mark.parametrize("slow", [0, 1, 3])
def test_the_slowest_stage_decides(slow):
    """Three of 1 s and one of 3 s, wherever it is: 10 prompts leave 3 s apart, the first after 6 s."""
    seconds = [1.0] * 4
    seconds[slow] = 3.0
    run = burst(10, Steady(seconds))
    assert run.seconds == 6 + 9 * 3
    assert run.bubble == pytest.approx(1 - 10 * 6 / (4 * 33))


def test_hops_by_hand():
    """Two stages of 1 s, a hop of 0.5 s, so that a prompt is 2.5 s on its way; the third waits for the first's slot.

    stage 0: A 0-1    B 1-2      C 2.5-3.5   D 3.5-4.5
    stage 1: A 1.5-2.5  B 2.5-3.5  C 4-5       D 5-6
    """
    run = burst(4, Steady([1.0, 1.0], hop=0.5))
    assert [sample.ended for sample in run.samples] == [2.5, 3.5, 5.0, 6.0]
    assert [(i.stage, i.start, i.end) for i in run.intervals if i.stage == 0] == [
        (0, 0, 1), (0, 1, 2), (0, 2.5, 3.5), (0, 3.5, 4.5),
    ]  # fmt: skip
    assert run.bubble == pytest.approx(1 - 8 / 12)


def test_tokens_go_back_before_they_count():
    """Three tokens of one request on two stages of 1 s: each token 2 s, a hop of 0.5 s and 0.25 s back."""
    run = simulate(due_at([1.0], output_tokens=3), config(micro_batches=2), Steady([1.0, 1.0], hop=0.5, finish=0.25))
    (sample,) = run.samples
    assert sample.token_times == (3.75, 6.5, 9.25)
    assert (sample.ttft_ms, sample.tpot_ms, sample.prefill_ms) == (2750, 2750, 2750)
    assert run.seconds == 9.25 and run.bubble == pytest.approx(1 - 6 / (2 * 8.25))


def test_a_rehearsal_shares_its_cores_and_chooses_tokens_on_the_first_stage():
    """One thread computes the first stage (1 s) and chooses tokens (0.5 s): two sequences of two tokens, one stage.

    Both prompts in one step 0-1, tokens 1-1.5; both generations 1.5-2.5, tokens 2.5-3.
    """
    times = Steady([1.0], finish=0.5, cores=1)
    run = simulate(due_at([0.0, 0.0], output_tokens=2), config(max_batch_size=2), times)
    assert [sample.token_times for sample in run.samples] == [(1.5, 3.0)] * 2
    assert run.seconds == 3.0
    assert run.utilisation == ((pytest.approx(2 / 3),),)


def test_ranks_that_outnumber_the_cores_slow_each_other_down():
    """Two ranks a stage on two cores: alone a step takes 1 s a stage, two at once take 2 s each."""
    times = Steady([1.0, 1.0], cores=2, ranks_per_stage=2)
    assert burst(1, times).seconds == 2
    assert burst(2, times).intervals[2][2:4] == (1.0, 3.0)  # the second on the first stage


def users(*begin: float, requests: int, output_tokens: int = 1) -> Traffic:
    """A closed loop of equal requests, whose users begin at these times."""
    rest = [0.0] * (requests - len(begin))
    traffic = due_at([*begin, *rest], prompt_tokens=16, output_tokens=output_tokens)
    return replace(traffic, rate=None, users=len(begin))


def test_users_who_begin_together_wait_for_each_other_for_ever():
    """Prompts fill a step of 0.1 s each. Three users of one token: each waits for the prompts of the two others."""
    together = simulate(users(0.0, 0.0, 0.0, requests=12), config(max_batch_size=3, max_num_tokens=16), Steady([0.1]))
    assert [sample.ttft_ms for sample in together.samples[3:]] == pytest.approx([300.0] * 9)


def test_users_who_begin_one_by_one_go_on_so():
    """Answers of 10 steps of 0.1 s. The second user comes in the middle of a step and of the first one's answer.

    Later each comes when a step has just begun: TTFT is that step and the own prompt, never another's prompt.
    """
    traffic = users(0.0, 0.45, requests=8, output_tokens=10)
    apart = simulate(traffic, config(max_batch_size=2, max_num_tokens=17), Steady([0.1]))
    assert [sample.due for sample in apart.samples] == pytest.approx([0.0, 0.45, 1.0, 1.5, 2.1, 2.6, 3.2, 3.7])
    assert [sample.ttft_ms for sample in apart.samples] == pytest.approx([100.0, 150.0, *[200.0] * 6])
