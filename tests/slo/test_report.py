"""What a report holds, and that everything in it can be recomputed from its raw samples."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy
import pytest

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.slo import report
from toolkit.slo.run import Run
from toolkit.slo.terminal import summary_text
from toolkit.slo.verdict import Outcome

from .samples import EPOCH, failed, sample

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
SETTINGS = {"protocol": "http", "users": 4, "requests": 120, "model": "tensorrt_llm_bls"}


@pytest.fixture
def deployment(tmp_path) -> Deployment:
    return Deployment.load(FLAGSHIP).model_copy(update={"output": tmp_path})


def run_of(*extra, cut_short=None) -> Run:
    """Four warm-up requests of 9 s each, then 120 of 100 + n ms and 20 ms a token, then `extra`."""
    warmup = [sample(9000, 9020, due=0) for _ in range(4)]
    judged = [sample(*(100 + n + 20 * k for k in range(8)), due=1 + n / 20, tokens_in=12) for n in range(120)]
    return Run((*warmup, *judged, *extra), 4, EPOCH, SETTINGS, cut_short)


def written(deployment, name: str) -> str:
    return (deployment.report_dir / name).read_text(encoding="utf-8")


def test_json_has_aiperfs_names_and_numbers_that_numpy_finds_in_the_raw_samples(deployment):
    report.write(deployment, run_of())
    found = json.loads(written(deployment, "report.json"))["metrics"]
    with gzip.open(deployment.report_dir / "samples.jsonl.gz", "rt") as raw:
        rows = [json.loads(line) for line in raw]
    judged = [row for row in rows if not row["warmup"]]
    ttft = [(row["first_text"] - row["due"]) * 1e3 for row in judged]
    e2e = [(row["token_times"][-1] - row["due"]) * 1e3 for row in judged]
    assert len(rows) == 124 and len(judged) == 120
    for q in (1, 50, 90, 99):
        assert found["time_to_first_token"][f"p{q}"] == pytest.approx(numpy.percentile(ttft, q))
        assert found["request_latency"][f"p{q}"] == pytest.approx(numpy.percentile(e2e, q))
    assert found["time_to_first_token"]["std"] == pytest.approx(numpy.std(ttft))
    assert found["inter_token_latency"]["avg"] == pytest.approx(20, abs=1e-3)
    assert found["token_gap"]["count"] == 120 * 7
    duration = max(row["ended"] for row in judged) - min(row["due"] for row in judged)
    assert found["request_throughput"]["avg"] == pytest.approx(120 / duration)
    assert found["output_token_throughput"]["avg"] == pytest.approx(960 / duration)
    assert found["request_count"]["avg"] == 120 and found["error_request_count"]["avg"] == 0
    assert found["input_sequence_length"]["avg"] == 12 and found["output_sequence_length"]["avg"] == 8


def test_what_was_written_gives_the_same_verdict_when_read(deployment):
    verdict = report.write(deployment, run_of(failed(due=3)))
    again = report.verdict_of(deployment, report.read(deployment))
    assert again.reason == verdict.reason
    assert [t.measured for t in again.targets] == [t.measured for t in verdict.targets]


def test_json_has_no_infinity_and_keeps_the_circumstances(deployment):
    report.write(deployment, run_of(*(failed(due=2) for _ in range(30)), cut_short="stopped after 154 of 200 requests"))
    text = written(deployment, "report.json")
    assert "Infinity" not in text and "NaN" not in text
    found = json.loads(text)
    assert found["metrics"]["time_to_first_token"]["p99"] is None
    assert found["errors"] == {"no answer": 30}
    assert found["run"]["cut_short"] == "stopped after 154 of 200 requests"
    assert (found["run"]["warmup"], found["run"]["settings"]) == (4, SETTINGS)
    assert found["verdict"]["outcome"] == "COULD NOT RUN" and found["verdict"]["exit_code"] == 3
    assert found["deployment"]["parallel"] == {"tp": 2, "pp": 4, "replicas": 1}
    assert {"python", "toolkit", "locust"} <= set(found["versions"])


def test_page_is_self_contained_and_says_the_verdict_first(deployment):
    report.write(deployment, run_of())
    page = written(deployment, "report.html")
    assert not re.search(r"<script|<link|<img|@import|https?://", page)
    assert page.index("<strong>PASS</strong>") < page.index("Targets") < page.index("<svg")
    assert page.count("<svg") == 5
    assert "prefers-color-scheme: dark" in page and "var(--token)" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "ids of different plots must not clash"
    assert "max_num_tokens: 8192" in page


def test_page_escapes_what_a_server_says(deployment):
    report.write(deployment, run_of(failed(due=2, error="<script>alert(1)</script> & more")))
    page = written(deployment, "report.html")
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page


@pytest.mark.parametrize(
    ("samples", "outcome"),
    [
        ((), Outcome.COULD_NOT_RUN),
        ((failed(),), Outcome.FAIL),
        ((sample(40),), Outcome.PASS),
        ((sample(40, first_text=None),), Outcome.PASS),
    ],
)
def test_a_run_of_hardly_anything_still_has_a_report(deployment, samples, outcome):
    verdict = report.write(deployment, Run(samples, 0, EPOCH, SETTINGS))
    assert verdict.outcome is outcome
    assert str(verdict.outcome) in written(deployment, "report.html")
    assert str(verdict.outcome) in summary_text(verdict)


def test_terminal_shows_each_target_and_what_was_not_measured(deployment):
    text = summary_text(report.verdict_of(deployment, run_of()))
    assert re.search(r"TTFT  .* 160 .* 207 .* 218", text)
    assert re.search(r"TTFT P99 .* ≤ 1,500 ms .* 218 ms .* 21\d to ∞ ms .* \+85 % .* PASS", text)
    assert re.search(r"Prefill P99 .* ≤ 1,000 ms .* NOT MEASURED", text)
    assert "Prefill P50, Prefill P99: the server gave no times of its own" in text
    assert "PASS  5 targets met over 120 requests; not measured: Prefill P50" in text


def test_reading_what_is_not_there_or_damaged_is_one_line(deployment):
    with pytest.raises(ToolkitError, match=r"there is no report here\. Run: toolkit loadtest"):
        report.read(deployment)
    report.write(deployment, run_of())
    raw = deployment.report_dir / "samples.jsonl.gz"
    raw.write_bytes(gzip.compress(b'{"id": 1}\n'))
    with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz:1: not a sample"):
        report.read(deployment)
    raw.write_bytes(gzip.compress(b'{"id": "x", "protocol": "http", "due": "late", "sent": 1, "ended": 2}\n'))
    with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz:1: not a sample: a time is no number"):
        report.read(deployment)
    for damaged in (b"no gzip", gzip.compress(b"x" * 99)[:-9]):
        raw.write_bytes(damaged)
        with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz: cannot be read: \w+"):
            report.read(deployment)


def test_a_report_that_cannot_be_written_is_one_line(deployment, tmp_path):
    (tmp_path / "file").write_text("in the way")
    blocked = deployment.model_copy(update={"output": tmp_path / "file"})
    with pytest.raises(ToolkitError, match="cannot be written"):
        report.write(blocked, run_of())


def test_errors_over_time_are_drawn_where_there_are_any_the_rare_ones_together(deployment):
    report.write(deployment, run_of())
    assert "Errors over time" not in written(deployment, "report.html")
    kinds = [failed(due=n, error=f"error {n}") for n in range(6) for _ in range(6 - n)]
    report.write(deployment, run_of(*kinds))
    page = written(deployment, "report.html")
    legend = page[page.index("Errors over time") :].split("</figcaption>")[0]
    assert re.findall(r"</i>([^<]*)</li>", legend) == ["error 0", "error 1", "error 2", "error 3", "others"]
