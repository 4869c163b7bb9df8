"""Several times the same load test, as one report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.slo.samples import EPOCH, sample
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import Percentiles, Slo
from toolkit.errors import ToolkitError
from toolkit.load.repeats import merge
from toolkit.reports.compare.compare import compare
from toolkit.reports.loadtest import report
from toolkit.reports.loadtest.terminal import summary_text
from toolkit.slo.metrics import Measured
from toolkit.slo.repeatability import repeatability
from toolkit.slo.run import Run
from toolkit.slo.server_metrics import GpuSeen, ServerSeen, combined

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.fixture
def deployment(tmp_path) -> Deployment:
    slo = Slo(ttft_ms=Percentiles(p50=200))
    return load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path, "slo": slo})


def once(ttft_ms: float, begin: float, cut_short: str | None = None) -> Run:
    """Two warm-up requests of 9 s, then 20 of a known TTFT, ten a second."""
    warmup = [sample(9000, 9020, due=begin) for _ in range(2)]
    judged = [sample(ttft_ms, ttft_ms + 20, due=begin + 1 + n / 10) for n in range(20)]
    settings = {"protocol": "http", "users": 4, "seed": 3, "requests": 20}
    return Run((*warmup, *judged), 2, EPOCH + begin, settings, cut_short)


def test_warm_up_is_left_out_each_time_and_the_pauses_between_are_no_time_of_the_test(deployment) -> None:
    run = merge([once(100, 0), once(120, 60), once(150, 200)])
    assert (len(run.samples), len(run.judged), len(run.warming)) == (66, 60, 6)
    measured = run.measured({})
    assert measured.distributions["ttft_ms"].values[-1] == pytest.approx(150, abs=0.01)
    assert measured.duration_s == pytest.approx(3 * 1.92 + (0.1 + 0.12 + 0.15), abs=0.1)
    rows = {row.label: row for row in repeatability(measured)}
    assert rows["TTFT P50"].values == pytest.approx((100, 120, 150), abs=0.01)
    assert rows["TTFT P50"].spread == pytest.approx(50 / 120, rel=1e-3)
    assert rows["TPOT P99"].spread == pytest.approx(0, abs=1e-3)
    assert not repeatability(once(100, 0).measured({}))


def test_the_interval_is_that_of_the_repeats(deployment) -> None:
    """Within a run nothing differs: only between runs is there any doubt, and the interval has it."""
    run = merge([once(100, 0), once(120, 60), once(150, 200)])
    verdict = report.write(deployment, run)
    target = next(target for target in verdict.targets if target.name == "ttft_ms.p50")
    assert target.interval == (pytest.approx(100, abs=0.1), pytest.approx(150, abs=0.1))
    alone = report.verdict_of(deployment, once(120, 0)).targets[0]
    assert alone.interval == (pytest.approx(120, abs=0.1), pytest.approx(120, abs=0.1))


def test_the_report_keeps_which_sample_is_of_which_repeat(deployment) -> None:
    run = merge([once(110, 0), once(150, 60)])
    report.write(deployment, run)
    with gzip.open(deployment.report_dir / "samples.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    assert [row["repeat"] for row in rows] == [1] * 22 + [2] * 22
    assert [number for number, row in enumerate(rows) if row["warmup"]] == [0, 1, 22, 23]
    content = json.loads((deployment.report_dir / "report.json").read_text())
    assert content["run"]["repeats"] == [22, 22] and content["run"]["settings"]["repeats"] == 2
    each = [one["time_to_first_token"]["p50"] for one in content["repeats"]]
    assert each == pytest.approx([110, 150], abs=0.01)
    again = report.read(deployment)
    assert (again.repeats, again.samples) == (run.repeats, run.samples)
    page = (deployment.report_dir / "report.html").read_text()
    assert "<h2>2 repeats</h2>" in page and "after 2 to warm up each time" in page
    assert "| TTFT P50 | 110 ms | 150 ms | 30.8 % |" in (deployment.report_dir / "summary.md").read_text()
    assert "spread" in summary_text(report.verdict_of(deployment, again))
    found = compare([deployment.report_dir, deployment.report_dir])
    assert "are the same run" in found.warnings[0]


def test_a_damaged_report_is_one_line(deployment) -> None:
    report.write(deployment, merge([once(100, 0), once(150, 60)]))
    file = deployment.report_dir / "report.json"
    file.write_text(file.read_text().replace('"repeats": [\n      22,', '"repeats": [\n      9,'))
    with pytest.raises(ToolkitError, match=r"run\.repeats has 31 samples, there are 44"):
        report.read(deployment)


def test_what_was_cut_short_stays_so() -> None:
    run = merge([once(100, 0), once(150, 60, cut_short="stopped after 22 of 44 requests")])
    assert run.cut_short == "stopped after 22 of 44 requests"
    empty = merge([once(100, 0), Run((sample(9000, 9020, due=9),), 2, EPOCH, {}, "stopped after 1 of 22 requests")])
    assert isinstance(measured := empty.measured({}), Measured) and len(measured.runs) == 1


def test_the_gpus_of_all_times() -> None:
    seen = [
        ServerSeen((GpuSeen("a", share, used, 80.0),), 10, kv) for share, used, kv in ((0.7, 5, 0.3), (0.9, 4, 0.2))
    ]
    assert combined(seen) == ServerSeen((GpuSeen("a", pytest.approx(0.8), 5, 80.0),), 20, 0.3)
    assert combined([]) is None
