"""A latency metric is one entry of toolkit/config/metrics.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from toolkit.config import metrics

def second(sample):
    return (sample.token_times[1] - sample.due) * 1e3 if len(sample.token_times) > 1 else None

metrics.METRICS["second_token_ms"] = metrics.Metric("second_token_ms", "Second token", "time_to_second_token", second)

from tests.slo.samples import EPOCH, sample
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.reports.loadtest import report
from toolkit.slo.run import Run

samples = tuple(sample(100, 140 + number, due=number) for number in range(20))
verdict = report.write(load_deployment(sys.argv[1]), Run(samples, 0, EPOCH, {"protocol": "http"}))
(target,) = [target for target in verdict.targets if target.name == "second_token_ms.p50"]
print(target.label, target.passed)
"""


def test_one_entry_makes_a_metric_a_target_and_part_of_verdict_page_and_json(tmp_path, tiny_llama):
    file = tmp_path / "trial.yaml"
    slo = {"second_token_ms": {"p50": 145}, "compliance": 0.1}
    content = {"engine": "rehearsal", "model": {"path": str(tiny_llama)}, "slo": slo, "output": "out"}
    file.write_text(
        yaml.safe_dump({**content, "hardware": {"gpu": "none"}, "limits": {"max_seq_len": 128, "max_num_tokens": 128}})
    )
    ran = subprocess.run([sys.executable, "-c", PROGRAM, file], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "Second token P50 False\n", ran.stderr
    folder = tmp_path / "out" / "report"
    found = json.loads((folder / "report.json").read_text())
    assert found["metrics"]["time_to_second_token"]["p50"] == pytest.approx(149.5, abs=0.01)
    page = (folder / "report.html").read_text()
    assert "Second token P50" in page
