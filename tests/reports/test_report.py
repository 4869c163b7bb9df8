"""What a report holds, and that everything in it can be recomputed from its raw samples."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
from pathlib import Path

import numpy
import pytest

from tests.slo.samples import EPOCH, failed, sample
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.reports.loadtest import report
from toolkit.reports.loadtest.terminal import summary_text
from toolkit.slo.run import Run
from toolkit.slo.verdict import Outcome

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
SETTINGS = {"protocol": "http", "users": 4, "requests": 120, "model": "tensorrt_llm_bls"}


@pytest.fixture
def deployment(tmp_path) -> Deployment:
    return load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path})


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


def test_a_report_is_for_its_user_alone(deployment):
    report.write(deployment, run_of())
    assert deployment.report_dir.stat().st_mode & 0o777 == 0o700


def test_what_was_written_gives_the_same_verdict_when_read(deployment):
    verdict = report.write(deployment, run_of(*(failed(due=n) for n in range(4))))
    run, told = report.read_judged(deployment)
    again = report.verdict_of(deployment, run)
    assert again.reason == verdict.reason == told.reason and told.outcome is verdict.outcome
    assert [t.measured for t in again.targets] == [t.measured for t in verdict.targets]
    assert told.targets == verdict.targets, "with what is infinite, and null in JSON"
    assert any(math.isinf(target.measured or 0) for target in told.targets)


def test_a_verdict_that_is_read_is_not_computed_again(deployment, monkeypatch):
    """A command that has judged a run hands its verdict on."""
    verdict = report.write(deployment, run_of())
    monkeypatch.setattr(report, "judge", lambda *_, **__: pytest.fail("judged again"))
    assert report.read_judged(deployment)[1].reason == verdict.reason


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
    assert {"tp": 2, "pp": 4, "replicas": 1}.items() <= found["deployment"]["parallel"].items()
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


def test_control_characters_of_a_server_are_shown(deployment):
    """ToolkitError escapes them when a request fails; a sample may come from elsewhere."""
    verdict = report.write(deployment, run_of(*(failed(due=2, error="a\x1b[31mb\x07\u202e\ud800") for _ in range(9))))
    for name in ("report.html", "summary.md"):
        text = written(deployment, name)
        assert "x1b" in text and "u202e" in text and "ud800" in text
        assert all(c.isprintable() or c in "\n\xa0\u202f" for c in text), name
    assert r"9 x a\x1b[31mb" in summary_text(verdict)


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
    assert "Prefill P50, Prefill P99: the server reported no times of its own" in text
    assert "PASS  5 targets met over 120 requests; not measured: Prefill P50" in text


BAD_SAMPLES = [
    ("due", math.nan, "due: input should be "),
    ("ended", math.inf, "ended: input should be less than 250000000000, got inf"),
    ("ended", -math.inf, "ended: input should be greater than or equal to 0, got -inf"),
    ("token_times", [1, math.nan], "token_times[1]: input should be "),
    ("token_times", 5, "token_times: input should be a valid "),
    ("first_text", 1e300, "first_text: input should be less than 250000000000, got 1e+300"),
    ("prefill_ms", math.inf, "prefill_ms: input should be less than 1000"),
    ("tokens_in", "many", "tokens_in: input should be a valid integer, unable to parse"),
    ("replica", 10**12, "replica: input should be less than 65536, got 1000000000000"),
    ("error", [1], "error: input should be a valid string, got [1]"),
    ("id", "\ud800", "invalid JSON: "),
]


def test_reading_what_is_not_there_or_damaged_is_one_line(deployment):
    with pytest.raises(ToolkitError, match=r"there is no report here\. Run: toolkit loadtest"):
        report.read(deployment)
    report.write(deployment, run_of())
    raw = deployment.report_dir / "samples.jsonl.gz"
    raw.write_bytes(gzip.compress(b'{"id": 1}\n'))
    with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz:1: not a sample"):
        report.read(deployment)
    raw.write_bytes(gzip.compress(b'{"id": "x", "protocol": "http", "due": "late", "sent": 1, "ended": 2}\n'))
    with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz:1: not a sample: due: .*, got 'late'"):
        report.read(deployment)
    for field, value, complaint in BAD_SAMPLES:
        line = json.dumps({"id": "x", "protocol": "http", "due": 1, "sent": 1, "ended": 2, field: value})
        raw.write_bytes(gzip.compress(f"{line}\n".encode()))
        with pytest.raises(ToolkitError) as caught:
            report.read(deployment)
        assert f"samples.jsonl.gz:1: not a sample: {complaint}" in str(caught.value)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    for damaged in (b"no gzip", gzip.compress(b"x" * 99)[:-9]):
        raw.write_bytes(damaged)
        with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz: cannot be read: \w+"):
            report.read(deployment)


def write_files_alone(deployment) -> None:
    """What a report is read from, without the page, which takes a second."""
    deployment.report_dir.mkdir(parents=True)
    report.write_data(deployment.report_dir, deployment, run_of(), report.verdict_of(deployment, run_of()))


BAD_RUNS = [
    ("started", math.inf, "run.started: input should be less than 250000000000, got inf"),
    ("started", "now", "run.started: input should be a valid number"),
    ("warmup", -1, "run.warmup: input should be greater than or equal to 0, got -1"),
    ("settings", [], "run.settings: input should be a valid dictionary, got []"),
    ("cut_short", 5, "run.cut_short: input should be a valid string, got 5"),
    ("own_error", {"ttft_ms": {"p50": math.nan, "p99": 1}}, "run.own_error.ttft_ms.p50: input should be "),
    (
        "server",
        {"gpus": [{"uuid": "x", "utilisation": math.inf}]},
        "run.server.gpus[0].utilisation: input should be less",
    ),
    ("repeats", [1, 2], "run.repeats has 3 samples, there are 124"),
    ("repeats", "x", "run.repeats: input should be a valid tuple, got 'x'"),
]


@pytest.mark.parametrize(("field", "value", "complaint"), BAD_RUNS, ids=lambda value: str(value)[:20])
def test_a_run_that_cannot_have_been(deployment, field, value, complaint):
    write_files_alone(deployment)
    file = deployment.report_dir / "report.json"
    content = json.loads(file.read_text())
    content["run"][field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ToolkitError) as caught:
        report.read(deployment)
    assert f"report.json: is not a valid report: {complaint}" in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["report.json", "samples.jsonl.gz"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_files_that_have_no_end(deployment, name, make):
    write_files_alone(deployment)
    (deployment.report_dir / name).unlink()
    make(deployment.report_dir / name)
    with pytest.raises(ToolkitError, match=rf"{name}: is a (named pipe|device|directory), expected a file"):
        report.read(deployment)


@pytest.mark.timeout(60)
def test_a_line_of_samples_without_an_end(deployment):
    """A gigabyte of zeros is a megabyte of gzip."""
    write_files_alone(deployment)
    with gzip.open(deployment.report_dir / "samples.jsonl.gz", "wb", compresslevel=1) as stream:
        for _ in range(64):
            stream.write(b" " * (1 << 20))
    with pytest.raises(ToolkitError, match=r"samples\.jsonl\.gz:1: not a sample: invalid JSON"):
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
