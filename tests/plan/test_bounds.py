"""Bounds from step times alone: by hand, and against simulations, which must not beat them."""

import pytest

from tests.simulate.steady import Steady
from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.config.sections import Percentiles, Slo
from toolkit.plan.bounds import Bounds, token_limit_s
from toolkit.plan.predict import predict

STEP = 0.1


def test_one_stage_by_hand():
    """8 sequences get a token every step of 0.1 s, so 8 answers of 20 tokens take 2 s. A request wants 77 + 19
    tokens: of 10 steps a second with 32 tokens each it takes three."""
    bounds = Bounds(Steady([STEP]), prompt=77, output=20)
    assert bounds.token_s(8) == pytest.approx(STEP)
    assert bounds.rate(8, 4096) == pytest.approx(8 / (20 * STEP))
    assert bounds.rate(8, 32) == pytest.approx(10 / 3)
    assert bounds.sequences(0.1, 500) == 500 and bounds.sequences(0.09, 500) == 0


def test_a_pipeline_is_as_fast_as_its_slowest_stage():
    """Four micro-batches take the slowest stage in turn: 4 x 0.2 s, more than the 0.5 s of the way through."""
    bounds = Bounds(Steady([0.1, 0.1, 0.1, 0.2]), prompt=10, output=20)
    assert bounds.token_s(8) == pytest.approx(0.8)
    assert bounds.rate(8, 4096) == pytest.approx(8 / (20 * 0.8))


@pytest.mark.parametrize(("sequences", "tokens"), [(16, 8192), (64, 256), (64, 2048)])
@pytest.mark.parametrize(("tp", "pp"), [(8, 1), (2, 4)])
def test_no_simulation_beats_them(flagship, tp, pp, sequences, tokens):
    deployment = with_settings(
        load_deployment(flagship()),
        parallel={"tp": tp, "pp": pp, "replicas": 1},
        limits={"max_sequences": sequences, "max_num_tokens": tokens},
    )
    prediction = predict(deployment)
    assert prediction.saturation.throughput <= 1.03 * Bounds.of(prediction).rate(sequences, tokens)


@pytest.mark.parametrize(
    ("slo", "seconds"),
    [
        (Slo(), None),
        (Slo(tpot_ms=Percentiles(p50=50, p99=100)), 0.05),
        (Slo(tpot_ms=Percentiles(p99=100), e2e_ms=Percentiles(p90=4000)), 0.04),
    ],
)
def test_the_time_a_token_may_take(slo, seconds):
    assert token_limit_s(slo, output=100) == seconds
