"""A run that repeats steps is, to the last bit, the run that schedules each step anew."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from toolkit.config.load import load_deployment
from toolkit.plan.predict import predict
from toolkit.simulate import Simulation, simulate
from toolkit.simulate.repetition import RepeatingScheduler
from toolkit.workload import Planned, Traffic

from .steady import Steady, config, prompt
from .test_conservation import cases

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def step_by_step(*arguments, **options) -> Simulation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RepeatingScheduler, "repeat", lambda scheduler, step: False)
        patch.setattr(RepeatingScheduler, "change", lambda scheduler, step: None)
        patch.setattr(RepeatingScheduler, "may_coast", lambda scheduler: False)
        return simulate(*arguments, **options)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_any_run(case):
    check(case)


@pytest.mark.thorough
@given(cases())
@settings(max_examples=200, deadline=None)
def test_any_of_many_runs(case):
    check(case)


def check(case):
    assert simulate(*case, record=(0.0, 1e9)) == step_by_step(*case, record=(0.0, 1e9))
    assert simulate(*case) == step_by_step(*case)


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
@pytest.mark.parametrize("blocks", [200, 40])
def test_long_answers(policy, blocks):
    """Most steps are repeated; with 40 blocks sequences wait for memory, or are paused."""
    requests = tuple(Planned(0.7 * n, prompt(n, 5 + n % 7), 60 + 11 * (n % 5)) for n in range(40))
    traffic = Traffic(requests, 1 / 0.7, None, False)
    scheduling = config(max_batch_size=4, micro_batches=3, num_blocks=blocks, policy=policy)
    times = Steady([0.1, 0.13, 0.11], 0.01, 0.002)
    assert simulate(traffic, scheduling, times) == step_by_step(traffic, scheduling, times)


def test_the_flagship():
    prediction = predict(load_deployment(FLAGSHIP))
    traffic = prediction.traffic.first(150)
    arguments = (traffic, prediction.scheduling, prediction.times)
    assert simulate(*arguments, front_s=0.002) == step_by_step(*arguments, front_s=0.002)
