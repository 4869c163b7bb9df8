"""What was predicted of a load test's own requests."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.load.prediction import predicted, traffic_that_ran
from toolkit.plan.predict import predict
from toolkit.slo.prediction import Predicted, PredictedMetric
from toolkit.slo.run import Run
from toolkit.slo.sample import Sample
from toolkit.workload import traffic_of

CONFIGS = Path(__file__).parents[2] / "build_configs"


@pytest.fixture(scope="module", params=["poisson", "closed"])
def ran(request):
    """A deployment, and a run of it that went exactly as the simulator has it."""
    deployment = load_deployment(CONFIGS / "llama3-70b-h100-tp8-fp16.yaml")
    workload = {"arrivals": request.param, "rate": 4.0, "requests": 60, "users": 8}
    deployment = with_settings(deployment, workload=workload)
    traffic = traffic_of(deployment)
    samples = predict(deployment).simulate(traffic).samples
    told = [
        replace(
            sample,
            tokens_in=len(planned.prompt),
            due=sample.due + 1e9,
            sent=sample.sent + 1e9,
            ended=sample.ended + 1e9,
            token_times=tuple(time + 1e9 for time in sample.token_times),
            first_text=sample.first_text and sample.first_text + 1e9,
        )
        for sample, planned in zip(samples, traffic.requests, strict=True)
    ]
    loop = "closed" if request.param == "closed" else "open"
    return deployment, Run(tuple(told), 6, 1e9, {"loop": loop, "users": 8})


def test_a_run_that_went_as_predicted(ran):
    deployment, run = ran
    found = predicted(deployment, run)
    assert [row.label for row in found.rows][:2] == ["TTFT P50", "TTFT P99"]
    for row in found.rows:
        assert row.measured == pytest.approx(row.predicted, rel=1e-3), row
    assert "closed form" in found.estimator
    assert TypeAdapter(Predicted).validate_json(TypeAdapter(Predicted).dump_json(found)) == found


def test_a_server_that_is_slower_than_predicted(ran):
    deployment, run = ran
    late = tuple(
        replace(
            s, ended=s.ended + 1, token_times=tuple(time + 1 for time in s.token_times), first_text=s.first_text + 1
        )
        for s in run.samples
    )
    found = {row.label: row for row in predicted(deployment, replace(run, samples=late)).rows}
    assert found["TTFT P50"].measured - found["TTFT P50"].predicted == pytest.approx(1000, rel=0.01)
    assert found["TTFT P50"].difference > 1
    assert found["TPOT P50"].difference == pytest.approx(0, abs=0.01)


def test_the_traffic_that_ran():
    samples = tuple(
        Sample(f"load-{n}", "http", due=100.0 + n, sent=100.0 + n, ended=110.0, token_times=(109.0, 110.0), tokens_in=7)
        for n in range(3)
    )
    traffic = traffic_that_ran(Run(samples, 0, 100.0, {"loop": "open"}))
    assert [(planned.due, len(planned.prompt), planned.output_tokens) for planned in traffic.requests] == [
        (0.0, 7, 2),
        (1.0, 7, 2),
        (2.0, 7, 2),
    ]
    assert (traffic.rate, traffic.users) == (1.0, None)


def test_where_there_is_no_prediction(ran):
    deployment, run = ran
    broken = replace(run, samples=(*run.samples[:-1], replace(run.samples[-1], error="broke")))
    with pytest.raises(ToolkitError, match="the lengths of 1 of 54 requests are not known"):
        predicted(deployment, broken)
    rehearsal = load_deployment(CONFIGS / "tiny-llama-rehearsal.yaml")
    with pytest.raises(ToolkitError, match="a rehearsal's step times are not known"):
        predicted(rehearsal, run)


def test_difference():
    assert PredictedMetric("x", "ms", 100.0, 110.0).difference == pytest.approx(0.1)
    assert PredictedMetric("x", "ms", float("inf"), 110.0).difference is None
    assert PredictedMetric("x", "ms", 0.0, 1.0).difference is None
