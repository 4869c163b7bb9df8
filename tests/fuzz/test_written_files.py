"""Files that the toolkit has written, and something else since: locks, states, calibrations, reports."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import toolkit
from tests.slo.samples import EPOCH, failed, lognormal
from tests.steptimes.test_calibration import FLAGSHIP, kernels_by_hand, layers
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.files import artifacts
from toolkit.reports.compare import page as compare_page
from toolkit.reports.loadtest import report
from toolkit.serve.state import read_state
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.run import Run
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.steptimes import calibration

from .fuzzing import JSON_PIECES, MANY, changed, checked, damaged, examples, printed

pytestmark = pytest.mark.thorough

TINY = Path(__file__).parents[2] / "build_configs/tiny-llama-rehearsal.yaml"
LOCK = {
    "stage": "thing",
    "inputs": {"source": "1"},
    "settings": {"tp": 2, "list": [1, {"a": None}]},
    "versions": {"toolkit": "0"},
    "outputs": {"file": {"size": 1, "sha256": "0" * 64}},
    "seen": {"file": [1, 2]},
}
STATE = {"phase": "ready", "pid": 4194303, "run_id": "00000000", "since": 1.7e9, "message": ""}
STATE["tmp"] = "/tmp/toolkit-run-00000000-none"
ENDED = {**STATE, "phase": "failed", "message": "rank 3 \x1b[31mdied"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Deployment:
    folder = tmp_path_factory.mktemp("deployment")
    shutil.copy(TINY, folder / "x.yaml")
    text = (folder / "x.yaml").read_text().replace("path: ", f"path: {TINY.parent}/")
    (folder / "x.yaml").write_text(f"{text}\noutput: {folder}/out\n")
    deployment = load_deployment(folder / "x.yaml")
    deployment.run_dir.mkdir(parents=True)
    return deployment


def spoilt(content: dict) -> st.SearchStrategy[bytes]:
    """As JSON with other values in it, or with other bytes."""
    text = json.dumps(content).encode()
    return changed(content).map(lambda one: json.dumps(one).encode()) | damaged(text, JSON_PIECES)


@examples(40)
@given(spoilt(LOCK))
def test_locks(tmp_path, content):
    (tmp_path / "lock.json").write_bytes(content)

    def use() -> None:
        lock = artifacts.read_lock(tmp_path)
        assert lock is not None and lock.digest
        artifacts.is_current(tmp_path, "thing", {"source": "1"}, {"tp": 2})
        artifacts.require(tmp_path, "thing", {"tp": 2}, "toolkit make")

    checked(use, tmp_path)


@examples(25)
@given(spoilt(STATE) | spoilt(ENDED), st.booleans())
def test_states(deployment, content, stops):
    """Whatever a state file says, status and stop find nothing that runs, and remove nothing but the file."""
    file = deployment.run_dir / "state.json"
    file.write_bytes(content)
    done = checked(lambda: toolkit("stop" if stops else "status", deployment.file), deployment.run_dir)
    printed(done)
    assert done.returncode in ((0,) if stops else (0, 2, 3))
    read_state(deployment)


@examples(10)
@given(spoilt(layers(kernels_by_hand()[::5])))
def test_calibrations(tmp_path, content):
    file = tmp_path / "calibration.json"
    file.write_bytes(content)

    def use() -> None:
        found = calibration.load(file)
        assert all(difference.slowest_s > 0 for difference in found.differences(FLAGSHIP))
        found.step_times(FLAGSHIP)

    checked(use, tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A report of 12 requests, with all that one can have."""
    folder = tmp_path_factory.mktemp("report")
    deployment = FLAGSHIP.model_copy(update={"output": folder})
    own = GeneratorError(ttft_ms=AtPercentiles(1.0, 2.0), dispatch_ms=0.1, read_late_ms=0.2, cpu=0.5)
    seen = ServerSeen((GpuSeen("GPU-1", 0.5, 1e9, 8e9), GpuSeen("GPU-2")), 3, 0.5, 4.0)
    samples = (*lognormal(11, 1, tokens=4), failed())
    settings = {"protocol": "http", "users": 4, "loop": "open"}
    run = Run(samples, 1, EPOCH, settings, None, own, seen, repeats=(6, 6))
    report.write_data(folder, deployment, run, report.verdict_of(deployment, run))
    return folder


@examples(20)
@given(st.data(), st.booleans())
def test_reports(tmp_path, reported, data, of_samples):
    other = tmp_path / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(reported, other)
    if of_samples:
        lines = gzip.decompress((other / "samples.jsonl.gz").read_bytes()).splitlines()
        lines[3] = data.draw(spoilt(json.loads(lines[3])))
        packed = gzip.compress(b"\n".join(lines))
        (other / "samples.jsonl.gz").write_bytes(data.draw(st.just(packed) | damaged(packed, JSON_PIECES)))
    else:
        content = json.loads((other / "report.json").read_text())
        kept = {name: content[name] for name in ("run", "deployment", "predicted", "versions")}
        (other / "report.json").write_bytes(data.draw(spoilt(kept)))
    pages = ["--html", tmp_path / "page.html"] if MANY and data.draw(st.integers(0, 9)) == 0 else []
    json_too = ["--json"] if data.draw(st.booleans()) else []
    done = checked(lambda: toolkit("compare", reported, other, *pages, *json_too), tmp_path)
    printed(done)
    assert done.returncode in (0, 1, 2, 3)


def test_pages_are_made_of_reports(tmp_path, reported):
    """The page takes a second; with `make fuzz` it is made of spoilt reports, too."""
    from toolkit.reports.compare.compare import compare

    compare_page.write_page(compare([reported, reported]), tmp_path / "page.html")
