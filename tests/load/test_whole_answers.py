"""Load tests of answers that are not streamed: what is asked, what can be measured of it, and what is said."""

from __future__ import annotations

import statistics

import pytest

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.load.runner import Options, run
from toolkit.load.target import can_stream, protocol_of
from toolkit.reports import wording
from toolkit.reports.loadtest import report
from toolkit.slo.verdict import Outcome

SLO = {"ttft_ms": {"p99": 2000}, "tpot_ms": {"p50": 100}, "itl_ms": {"p99": 100}, "e2e_ms": {"p50": 5000}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "prefix", "model", "asked"),
    [
        ("http", "", "ensemble", "generate"),
        ("grpc", "", "tensorrt_llm_bls", "ModelInfer"),
        ("openai", "openai+", "any", "chat"),
    ],
)
def test_whole_answers_have_an_end_and_no_first_token(server, deployment, protocol, prefix, model, asked):
    url = prefix + server.url("grpc" if protocol == "grpc" else "http")
    load = deployment(server, slo=SLO, requests=6, warmup_requests=2, users=2)
    verdict = run(load, Options(target=url, model=model, stream=False))
    found, records = report.read(load), {record.arrived: record for record in server.records(8)}
    assert {record.target for record in records.values()} == {asked}
    assert found.settings["model"] == model and wording.load(found.settings).endswith(
        f"over {protocol}, answers not streamed"
    )
    outcomes = {target.name: (target.outcome, target.note) for target in verdict.targets}
    unknown = ("NOT MEASURED", "the answers were not streamed")
    assert {outcomes[name] for name in ("ttft_ms.p99", "tpot_ms.p50", "itl_ms.p99", "compliance")} == {unknown}
    assert outcomes["e2e_ms.p50"][0] == "PASS" and verdict.outcome is Outcome.PASS, verdict.reason
    truth = statistics.median(record.token_times[-1] - record.arrived for record in records.values()) * 1e3
    assert verdict.measured.distributions["e2e_ms"].percentile(50) == pytest.approx(truth, abs=80)
    assert verdict.measured.tokens_out == 60, "as the server counts them"


def test_the_target_says_what_is_spoken(deployment):
    load = deployment(None, protocol="grpc")
    assert protocol_of(load, None, None) == "grpc" and protocol_of(load, "http", None) == "http"
    assert protocol_of(load, None, "http://h:1") == "http"
    assert protocol_of(load, "grpc", "grpc://h:1") == "grpc"
    assert protocol_of(load, None, "openai+https://h/v1/completions") == "openai"
    with pytest.raises(ToolkitError, match="--http contradicts the protocol of this URL"):
        protocol_of(load, "http", "grpc://h:1")


def test_a_target_with_openai_s_api_streams_whatever_the_deployment_says(deployment):
    load = load_deployment(deployment(None).file, changes={"serving.decoupled": False})
    assert not can_stream(load, None) and not can_stream(load, "grpc://h:1")
    assert can_stream(load, "openai+http://h:1")


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
def test_a_deployment_that_is_not_decoupled_is_asked_for_whole_answers(server, deployment, named):
    """Also at a --target, which serves the same on another machine."""
    load = deployment(server, requests=2, warmup_requests=0, users=1)
    load.file.write_text(load.file.read_text().replace("serving:", "serving:\n  decoupled: false"))
    run(load_deployment(load.file), Options(target=server.url("http") if named else None))
    assert report.read(load).settings["answers"] == "whole"
    assert {record.target for record in server.records(2)} == {"generate"}
