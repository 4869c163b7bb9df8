"""What a CI server reads: JUnit XML and Markdown, for a PASS, a FAIL, an UNDECIDED and a COULD NOT RUN."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tests.slo.samples import EPOCH, failed, sample
from toolkit.cli.main import cli
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import Percentiles, Slo
from toolkit.errors import ToolkitError
from toolkit.reports.loadtest import report
from toolkit.reports.loadtest.markdown import append_to_job_summary
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.run import Run
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.slo.verdict import could_not_run

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
OWN = GeneratorError(ttft_ms=AtPercentiles(2, 15), dispatch_ms=1.5, cpu=0.4)
STEADY = tuple(sample(100, 120, due=n / 10) for n in range(100))


@pytest.fixture(autouse=True)
def without_page(monkeypatch) -> None:
    """The page is drawn in seconds, and nothing here looks at it."""
    monkeypatch.setattr("toolkit.reports.loadtest.page.render", lambda *_: "")


@pytest.fixture
def deployment(tmp_path) -> Deployment:
    slo = Slo(ttft_ms=Percentiles(p50=200, p99=400), requests_per_s=8, gpu_utilisation=(0.7, 0.85))
    return load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path, "slo": slo})


def written(deployment, name: str, samples=STEADY, **circumstances) -> str:
    report.write(deployment, Run(samples, 0, EPOCH, {"protocol": "http", "users": 4}, **circumstances))
    return (deployment.report_dir / name).read_text(encoding="utf-8")


def cases(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """(the suite's counts; of each test case the tag of its result, "" for a pass)."""
    root = ElementTree.fromstring(text)
    suite = root.find("testsuite")
    assert root.tag == "testsuites" and suite is not None
    found = {}
    for case in suite.findall("testcase"):
        tags = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        assert len(tags) <= 1 and case.get("classname") == "slo.llama3-70b-h100-pp4tp2-fp16"
        found[case.get("name") or ""] = tags[0] if tags else ""
    counts = {key: suite.get(key) or "" for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {key: root.get(key) for key in counts}
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(counts[key]) == list(found.values()).count(tag)
    assert int(counts["tests"]) == len(found)
    return counts, found


def test_junit_of_a_pass(deployment) -> None:
    counts, found = cases(written(deployment, "junit.xml"))
    assert counts == {"tests": "7", "failures": "0", "errors": "0", "skipped": "2"}
    assert found == {
        "TTFT P50": "",
        "TTFT P99": "",
        "Requests/s": "",
        "Inside all limits": "",
        "GPU utilisation": "skipped",
        "GPU memory": "skipped",
        "The run": "",
    }


def test_junit_of_a_fail_says_what_was_measured(deployment) -> None:
    slow = (*STEADY[:90], *(sample(480, 500, due=9 + n / 10) for n in range(10)))
    text = written(deployment, "junit.xml", slow)
    assert {name for name, tag in cases(text)[1].items() if tag == "failure"} == {"TTFT P99", "Inside all limits"}
    failure = next(ElementTree.fromstring(text).iter("failure"))
    assert (failure.get("message") or "").startswith("measured 480 ms (95 %: ")
    assert ", target ≤ 400 ms, margin -20 %" in (failure.get("message") or "")


def test_junit_of_an_undecided_is_skipped_and_says_so(deployment) -> None:
    near = tuple(sample(390, 400, due=n / 10) for n in range(100))
    text = written(deployment, "junit.xml", near, own=OWN)
    assert cases(text)[1]["TTFT P99"] == "skipped" and cases(text)[1]["TTFT P50"] == "failure"
    messages = [one.get("message") or "" for one in ElementTree.fromstring(text).iter("skipped")]
    assert any(message.startswith("UNDECIDED: measured 390 ms") for message in messages)


def test_junit_of_what_could_not_run_is_an_error(deployment) -> None:
    counts, found = cases(written(deployment, "junit.xml", STEADY[:3], cut_short="stopped after 3 of 100 requests"))
    assert counts == {"tests": "7", "failures": "0", "errors": "1", "skipped": "6"} and found["The run"] == "error"


def test_junit_says_what_ran(deployment) -> None:
    root = ElementTree.fromstring(written(deployment, "junit.xml", own=OWN))
    properties = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert properties["outcome"] == "PASS" and properties["layout"] == "tp2 pp4 replicas1"
    assert properties["load.users"] == "4" and properties["version.toolkit"]
    assert "TTFT 2.00 / 15.0 ms" in (properties["own error"] or "")


def test_what_a_server_says_breaks_neither(deployment) -> None:
    bad = (*STEADY, failed(9, error="</failure>\x00\x1b[31m| `x` <b>\nmore"))
    assert cases(written(deployment, "junit.xml", bad, cut_short="bad \x00 <reason>"))
    text = written(deployment, "summary.md", bad)
    assert r"- 1 x \</failure\>\x00\x1b\[31m\| \`x\` \<b\> more".replace(r"\x00\x1b", r"\\x00\\x1b") in text


GOLDEN = r"""## FAIL: llama3-70b-h100-pp4tp2-fp16

2 of 6 targets missed: TTFT P50, GPU utilisation; undecided: TTFT P99, Inside all limits.

| Target | Result | Measured | 95 % interval | Limit | Margin |
| :-- | --: | --: | --: | --: | --: |
| TTFT P50 | **FAIL** | 390 ms | 390 to 390 ms | ≤ 200 ms | -95 % |
| TTFT P99 | **UNDECIDED** | 390 ms | 390 to ∞ ms | ≤ 400 ms | +2.5 % |
| Requests/s | PASS | 9.71 | 9.71 to 9.71 | ≥ 8 | +21 % |
| Inside all limits | **UNDECIDED** | 100 % | 96.3 to 100 % | ≥ 99 % | +1.0 % |
| GPU utilisation | **FAIL** | 40 % | – | within 70 % to 85 % | -35 % |
| GPU memory | PASS | 80 % | – | ≤ 85 % | +5.9 % |

- TTFT P99: OWN; too few requests for an upper end of the interval
- Inside all limits: OWN; the interval holds the limit: another run may have the other outcome

| Latency, ms | P50 | P90 | P99 |
| :-- | --: | --: | --: |
| TTFT | 390 | 390 | 390 |
| TPOT | 12.0 | 12.0 | 12.0 |
| ITL | 12.0 | 12.0 | 12.0 |
| End-to-end | 402 | 402 | 402 |

9.71 requests/s, 19.4 output tokens/s; 100 requests in 10.3 s. The load generator's own error, P50 / P99: """
GOLDEN += "TTFT 2.00 / 10.0 ms.\n"
GOLDEN = GOLDEN.replace("OWN", "the load generator's own error is not less than the distance to the limit")


def test_the_markdown_as_a_whole(deployment) -> None:
    near = tuple(sample(390, 402, due=n / 10) for n in range(100))
    seen = ServerSeen(gpus=(GpuSeen("a", 0.4, 64, 80), GpuSeen("b", 0.4)))
    own = GeneratorError(ttft_ms=AtPercentiles(2, 10.0001))
    assert written(deployment, "summary.md", near, own=own, server=seen) == GOLDEN


def test_the_circumstances_are_there_again_when_the_report_is_read(deployment, monkeypatch) -> None:
    monkeypatch.undo()  # with the page
    seen = ServerSeen(gpus=(GpuSeen("a", 0.8, 5e9, 8e9),), readings=3)
    written(deployment, "report.json", own=OWN, server=seen)
    run = report.read(deployment)
    assert (run.own, run.server) == (OWN, seen)
    page = (deployment.report_dir / "report.html").read_text()
    assert "80% busy; 4.7 of 7.5 GiB of memory at most" in page and "2.00 / 15.0 ms" in page


def test_the_job_summary_of_github(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert not append_to_job_summary("x")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    assert append_to_job_summary("one") and append_to_job_summary("two")
    assert (tmp_path / "summary").read_text() == "one\ntwo\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(ToolkitError, match=r"GITHUB_STEP_SUMMARY=.*: cannot be written"):
        append_to_job_summary("x")


def test_a_job_summary_that_cannot_be_written_changes_no_exit_code(deployment, tmp_path, monkeypatch) -> None:
    written(deployment, "report.json")
    command = ["compare", str(deployment.report_dir), str(deployment.report_dir)]
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    code = CliRunner().invoke(cli, command).exit_code
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    done = CliRunner().invoke(cli, command)
    summary = (tmp_path / "summary").read_text()
    assert (done.exit_code, done.stderr) == (code, f"summary: added to {tmp_path / 'summary'}\n")
    assert summary.startswith("## UNDECIDED: A llama3-70b-h100-pp4tp2-fp16 and B ")
    assert r"| TTFT P50 \* | 100.0 ms | 100.0 ms | +0.0 % |" in summary
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "such"))
    done = CliRunner().invoke(cli, command)
    why = "cannot be written: No such file or directory"
    assert (done.exit_code, done.stderr) == (code, f"note: GITHUB_STEP_SUMMARY={tmp_path}/no/such: {why}\n")


def test_the_job_summary_of_a_test_that_could_not_run(deployment) -> None:
    verdict = could_not_run(deployment.slo, "no server is ready here. Start it")
    found = report.job_summary(deployment, verdict)
    assert found == "## COULD NOT RUN: llama3-70b-h100-pp4tp2-fp16\n\nno server is ready here. Start it.\n"
