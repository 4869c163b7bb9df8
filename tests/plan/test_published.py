"""The planner's throughput against what NVIDIA published of whole runs, and no constant was set from."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from toolkit.inflight import SchedulerConfig
from toolkit.model.rank_mapping import RankMapping
from toolkit.simulate import simulate
from toolkit.sizing.gpus import GPUS
from toolkit.sizing.precision import Precision
from toolkit.steptimes.latency import ClosedForm
from toolkit.workload import Planned, Traffic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def published():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("plan_published", BENCHMARKS / "plan_published.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["plan_published"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.thorough
def test_held_out_throughputs_are_within_the_limits(published):
    """Every sixth of the 986, over all releases, models, GPUs and layouts."""
    held_out = [point for point in published.points() if point.held_out]
    assert len(held_out) == 986
    median, ninth, bias = published.accuracy(point.error() for point in held_out[::6])
    assert median <= 0.07 and ninth <= 0.15 and abs(bias) <= 0.03, (median, ninth, bias)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("gpu", "precision"),
    [("h100-sxm", "fp16"), ("a100-sxm", "fp16"), ("h100-sxm", "fp8"), ("h200-sxm", "fp8"), ("l40s", "fp8")],
)
def test_no_gpu_is_hidden_behind_the_others(published, gpu, precision):
    """Every third of its held-out points since 0.14; each GPU for itself is within the limits."""
    points = [p for p in published.points() if p.held_out and p.release >= "0.14"]
    mine = [p for p in points if (p.gpu, p.precision) == (gpu, precision)]
    assert len(mine) >= 70
    median, ninth, bias = published.accuracy(point.error() for point in mine[::3])
    assert median <= 0.07 and ninth <= 0.15 and abs(bias) <= 0.04, (median, ninth, bias)


def test_first_tokens_of_one_prompt_alone(published):
    errors = [abs(predicted / ms - 1) for _, ms, predicted in published.first_tokens()]
    assert len(errors) == 16
    assert sorted(errors)[-2] <= 0.12 and max(errors) <= 0.20


def test_settings_are_those_of_the_release_s_own_benchmark(published):
    """By hand: 70B in FP8 at 4 x 80 GB has 0.95 x (318.4 - 70.6) / 163,840 B = 1,542,600 tokens: 771 of 2,000."""
    of = {(p.release, p.gpu, p.precision, p.tp, p.prompt, p.output): p for p in published.points() if "70B" in p.model}
    assert published.settings(of["0.17", "h100-sxm", "fp8", 4, 1000, 1000])[:2] == (896, 2048)
    assert published.settings(of["0.14", "h100-sxm", "fp16", 2, 2048, 2048]) == (2048, 1024, 0.9)
    assert published.settings(of["0.14", "h100-sxm", "fp16", 2, 1000, 1000]) == (256, 1024, 0.9)


def test_the_executor_tunes_its_batch_size(published):
    """Two in three of 671 sequences that fit are left out, none of 672; beyond the table multiples of 512."""
    assert [published.tuned(fit) for fit in (10, 143, 671, 672, 1300, 1700, 2100, 2200)] == [
        128, 128, 512, 768, 1536, 1700, 2048, 2200,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "output", "requests", "sequences", "tokens", "pool"),
    [(100, 40, 200, 64, 512, 100_000), (1000, 100, 60, 16, 512, 100_000), (300, 60, 90, 512, 2048, 8_000)],
)
def test_a_burst_is_what_the_simulator_makes_of_it(published, prompt, output, requests, sequences, tokens, pool):
    """Bound by the batch, by the tokens of a step, and by the KV pool."""
    times = ClosedForm(published.SHAPES["Llama-3.1-8B"], RankMapping(), GPUS["h100-sxm"], Precision())
    limits = published.Limits(sequences, tokens, pool)
    config = SchedulerConfig(
        max_batch_size=sequences,
        max_num_tokens=tokens,
        micro_batches=1,
        num_blocks=pool // limits.block,
        tokens_per_block=limits.block,
        policy="guaranteed_no_evict",
        chunked_context=True,
        reuse=False,
        max_queue_size=requests,
        max_seq_len=prompt + output,
    )
    all_at_once = Traffic(tuple(Planned(0.0, range(prompt), output) for _ in range(requests)), 1e6, None, False)
    simulated = simulate(all_at_once, config, times).seconds
    burst = published.Burst(times, prompt, output, requests, limits)
    assert burst.run() == pytest.approx(simulated, rel=0.01)
