"""How much of the toolkit a reader has to know to follow a command."""

from pathlib import Path

import pytest
import yaml

from tests.files_entered import files_entered
from toolkit.known_truth import KnownTruth, Settings

ROOT = Path(__file__).parents[2]
MOST, MOST_OF_A_LOAD_TEST = 45, 86


def test_a_build_of_the_tiny_rehearsal_enters_few_files(tmp_path: Path, tiny_llama: Path):
    content = yaml.safe_load((ROOT / "build_configs/tiny-llama-rehearsal.yaml").read_text())
    content["model"]["path"], content["output"] = str(tiny_llama), str(tmp_path / "out")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    names = files_entered("build", tmp_path / "x.yaml")
    assert (tmp_path / "out/engine/rank7.engine").is_file()
    assert "engine/rehearsal/build.py" in names and "checkpoint/jobs.py" in names, "it counts, also in forked processes"
    assert len(names) <= MOST, names


@pytest.mark.thorough  # the self-check takes its time
def test_a_load_test_enters_few_files(tmp_path: Path, tiny_llama: Path):
    content = yaml.safe_load((ROOT / "build_configs/tiny-llama-rehearsal.yaml").read_text())
    content["model"]["path"], content["output"] = str(tiny_llama), str(tmp_path / "out")
    content["slo"] = {"e2e_ms": {"p50": 60_000}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with KnownTruth(Settings(ttft_ms=10, itl_ms=2, tokens=16)) as server:
        names = files_entered("loadtest", tmp_path / "x.yaml", "--target", server.http, "--requests", 16, "--users", 2)
    assert (tmp_path / "out/report/report.html").is_file()
    assert {"load/users.py", "known_truth/http_server.py"} <= {*names}, "it counts, also in the processes of Locust"
    assert len(names) <= MOST_OF_A_LOAD_TEST, names
