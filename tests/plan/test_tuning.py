"""The batch limits of a layout: inside the ceiling, the KV pool and the SLO, and better than others."""

from dataclasses import replace

import pytest

from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.plan.bounds import Bounds
from toolkit.plan.predict import predict
from toolkit.plan.tuning import Ceiling, held, tuned

LAX = Ceiling(8192, 10_000, 0)


def test_a_ceiling_is_of_all_and_of_each(flagship):
    """64 over two replicas: others may have 64 in all, and 32 in each replica however many there are."""
    two = with_settings(load_deployment(flagship()), parallel={"tp": 4, "pp": 1, "replicas": 2})
    ceiling = Ceiling.of(two)
    assert (ceiling.tokens, ceiling.total, ceiling.each) == (8192, 64, 32)
    for replicas, most in ((1, 64), (2, 32), (8, 32)):
        assert ceiling.of_replica(with_settings(two, parallel={"replicas": replicas})) == most


def test_sequences_are_what_the_pool_holds(flagship):
    """Without a limit for tokens' times. A sequence of 1,024 + 128 tokens is 36 blocks of 32."""
    deployment = load_deployment(flagship(parallel={"tp": 4, "pp": 1, "replicas": 2}, slo={"requests_per_s": 8}))
    found = tuned(deployment, LAX, predict, "slo").prediction
    room = held(found)
    assert room == found.memory.pool_tokens // (36 * 32)
    assert 2 * (room - 8) < found.deployment.limits.max_sequences <= 2 * room


def test_sequences_keep_the_tokens_in_time(flagship):
    """So many that a full replica still gives a token every 50 ms, by the bounds; 8 more in a micro-batch would not."""
    deployment = load_deployment(flagship(parallel={"tp": 8, "pp": 1}, slo={"tpot_ms": {"p50": 50}}))
    found = tuned(deployment, LAX, predict, "slo").prediction
    sequences, bounds = found.deployment.limits.max_sequences, Bounds.of(found)
    assert sequences < held(found)
    assert bounds.token_s(sequences) <= 0.05 < bounds.token_s(sequences + 8)


@pytest.mark.thorough
def test_tuned_limits_serve_more_than_others(flagship):
    deployment = load_deployment(flagship(slo={"tpot_ms": {"p50": 50}, "requests_per_s": 8}))
    found = tuned(deployment, Ceiling.of(deployment), predict, "slo").prediction
    for tokens in (512, 8192):
        other = replace(found, deployment=with_settings(found.deployment, limits={"max_num_tokens": tokens}))
        assert (other.capacity.highest or 0) <= 1.03 * found.capacity.highest


def test_what_another_layout_beats_is_not_searched(flagship):
    deployment = load_deployment(flagship())
    found = tuned(deployment, Ceiling.of(deployment), predict, "slo", beaten=1000.0)
    assert found.at_most < 1000 and "capacity" not in vars(found.prediction)


def test_whole_prompts_have_one_size_of_steps(flagship):
    deployment = load_deployment(flagship(scheduler={"chunked_context": False}))
    assert tuned(deployment, Ceiling.of(deployment), predict, "slo").prediction.deployment.limits.max_num_tokens == 8192


def test_none_where_nothing_fits(flagship):
    deployment = load_deployment(flagship(parallel={"tp": 1, "pp": 1}))
    assert tuned(deployment, LAX, predict, "slo") is None


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost"])
def test_every_objective_has_limits(flagship, objective):
    deployment = load_deployment(flagship(parallel={"tp": 8, "pp": 1}, workload={"rate": 2, "output_tokens": 16}))
    limits = tuned(deployment, Ceiling.of(deployment), predict, objective).prediction.deployment.limits
    assert 1 <= limits.max_sequences <= 64 and 256 <= limits.max_num_tokens <= 8192
