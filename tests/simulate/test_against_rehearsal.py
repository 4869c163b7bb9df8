"""The simulator against the engine that it stands for: real ranks, without Triton, the same requests at the same times.

benchmarks/plan_rehearsal.py does it with Triton, a larger model and the pace of the machine. Here the ranks sleep for
most of a step, and the slowdowns are those of the very run, so that it does not matter what else the cores do.
"""

import json
import time

import pytest

from tests.calibrate.slow_rank import STEP_S, TOKEN_S, PacedRank, work_paced
from tests.engine.conftest import started
from toolkit.calibrate.grid import grid
from toolkit.calibrate.service import read_steps, slowdowns
from toolkit.calibrate.steps import engine_settings, time_steps
from toolkit.engine.steplog import VARIABLE
from toolkit.plan.predict import predict
from toolkit.simulate import simulate
from toolkit.slo.metrics import Measured
from toolkit.slo.sample import Sample
from toolkit.steptimes.calibration import model_of, parse
from toolkit.steptimes.calibration_file import FORMAT
from toolkit.workload import traffic_of

pytestmark = pytest.mark.alone

WITHIN = 1.5


@pytest.mark.slow
def test_simulated_percentiles_are_those_of_the_engine(tiny_llama, deploy, tmp_path, monkeypatch):
    workload = {"rate": 4, "requests": 30, "prompt_tokens": {"min": 10, "max": 40}}
    workload |= {"output_tokens": {"min": 5, "max": 25}, "seed": 2}
    deployment = deploy(tiny_llama, pp=2, workload=workload)
    content = {"format": FORMAT, "kind": "steps", "model": model_of(deployment.shape, "steps")}
    some = grid(engine_settings(deployment).scheduling)[::2]
    content |= time_steps(deployment, 8.0, lambda done, total: None, some, PacedRank)
    traffic, log = traffic_of(deployment), tmp_path / "steps.jsonl"
    monkeypatch.setenv(VARIABLE, str(log))
    monkeypatch.setattr("toolkit.engine.rehearsal.engine.Rank", PacedRank)
    samples = engine_samples(deployment, traffic)
    paces = slowdowns(read_steps(log), parse(content, log).measured_steps)
    content["crowding"] = [{"in_flight": number, "slowdown": slowdown} for number, slowdown in paces.items()]
    prediction = predict(deployment, parse(content, log))
    run = simulate(traffic, prediction.scheduling, prediction.times)
    predicted, measured = run.measured({}), Measured(samples[run.warmup :], {})
    assert measured.tokens_out == predicted.tokens_out
    assert predicted.tokens_per_s == pytest.approx(measured.tokens_per_s, rel=0.15)
    for name in ("ttft_ms", "tpot_ms"):
        ratio = predicted.distributions[name].percentile(50) / measured.distributions[name].percentile(50)
        assert 1 / WITHIN < ratio < WITHIN, json.dumps({name: ratio})


@pytest.mark.slow
def test_chunks_follow_each_other_through_the_stages_of_the_engine(tiny_llama, deploy, monkeypatch):
    """A stage sleeps for 46 ms of each chunk of 32 tokens. 12 chunks, each begun when the one before has left the
    fourth stage, could not take less than 12 x 4 x 46 = 2,208 ms. Following each other they take 15 x 46 = 690 ms and
    what is computed."""
    workload = {"rate": 1, "requests": 1, "prompt_tokens": 384, "output_tokens": 1}
    limits = {"max_sequences": 8, "max_num_tokens": 32, "max_seq_len": 448}
    deployment = deploy(tiny_llama, pp=4, limits=limits, workload=workload)
    monkeypatch.setattr("toolkit.engine.rehearsal.engine.Rank", PacedRank)
    (sample,) = engine_samples(deployment, traffic_of(deployment))
    print(f"TTFT {sample.ttft_ms:.0f} ms")
    chunk_ms = 1e3 * (STEP_S + 32 * TOKEN_S)
    assert 15 * chunk_ms < sample.ttft_ms < 12 * 4 * chunk_ms


def engine_samples(deployment, traffic) -> list[Sample]:
    """What the real engine does with the requests, each sent when it is due."""
    prompts = [[1 + (number + n) % 300 for n in range(len(r.prompt))] for number, r in enumerate(traffic.requests)]
    times: list[list[float]] = [[] for _ in prompts]

    def note(number: int):
        return lambda event: times[number].append(time.monotonic())

    with started(deployment, work_paced, enable_kv_cache_reuse=False) as group:
        from toolkit.engine.request import GenerationRequest

        begin = time.monotonic() + 0.2
        for number, planned in enumerate(traffic.requests):
            time.sleep(max(0.0, begin + planned.due - time.monotonic()))
            request = GenerationRequest(input_ids=prompts[number], request_output_len=planned.output_tokens)
            group.engine.submit([request], note(number))
        while any(len(t) < r.output_tokens for t, r in zip(times, traffic.requests, strict=True)):
            time.sleep(0.05)
    return [
        Sample(
            id=str(number),
            protocol="engine",
            due=begin + planned.due,
            sent=begin + planned.due,
            ended=arrived[-1],
            token_times=tuple(arrived),
            first_text=arrived[0],
        )
        for number, (planned, arrived) in enumerate(zip(traffic.requests, times, strict=True))
    ]
