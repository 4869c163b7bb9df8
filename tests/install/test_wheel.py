"""The wheel alone: the whole chain, from another folder."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.install.environment import Environment, build_wheel, make
from tests.ports import free_ports
from toolkit.deploy.wheel import wheel as own_wheel
from toolkit.files.distribution import install

ROOT = Path(__file__).parents[2]
FLAGSHIP = "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
CONFIG = "build_configs/two-ranks.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_that_deploy_writes_holds_the_same_files(wheel):
    """That of pip is the truth: toolkit deploy makes its own, as it may run where no clone is."""
    own = zipfile.ZipFile(io.BytesIO(own_wheel()))
    assert sorted(own.namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def everything(tmp_path_factory, wheel) -> Environment:
    """With all extras, in a folder with the examples and with somebody else's `toolkit`."""
    folder = tmp_path_factory.mktemp("all")
    made = make(folder / "environment", folder / "elsewhere", wheel, "all")
    (made.work / "toolkit").mkdir(parents=True)
    (made.work / "toolkit/__init__.py").write_text("raise ImportError('this is another project of the same name')\n")
    made.succeed("sample", "configs", "build_configs")
    made.succeed("sample", "tiny-llama", "tests/fixtures/tiny-llama")
    content = yaml.safe_load((made.work / "build_configs/tiny-llama-rehearsal.yaml").read_text())
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(), strict=True))
    content |= {"parallel": {"tp": 2, "pp": 1}, "serving": {**ports, "startup_timeout_s": 240}}
    (made.work / CONFIG).write_text(yaml.safe_dump(content))
    return made


@pytest.fixture(scope="module")
def repository(everything) -> Path:
    """Planned, built and generated; relative to the working folder."""
    assert "memory" in everything.succeed("plan", CONFIG)
    everything.succeed("build", CONFIG)
    everything.succeed("repo", CONFIG)
    return Path("work/two-ranks/repository")


@pytest.fixture
def served(everything, repository) -> Iterator[Environment]:
    everything.succeed("serve", "--detach", CONFIG)
    yield everything
    everything.succeed("stop", CONFIG)


@pytest.mark.timeout(600)
def test_it_is_served_asked_and_load_tested(served) -> None:
    before = contents(served.packages)
    for protocol in ("--http", "--grpc"):
        assert len(served.succeed("ask", protocol, CONFIG, "Hello")) > 10
    for options in ((), ("--workload", "short", "--rate", 2, "--no-self-check")):
        done = served.toolkit("loadtest", CONFIG, "--requests", 8, "--json", *options)
        assert done.returncode in (0, 1, 2), done.stderr  # which verdict is for the machine's speed to say
        assert json.loads(done.stdout)["metrics"]["error_request_count"]["avg"] == 0
    assert contents(served.packages) == before, "something was written into site-packages"


def test_it_is_typed_linted_verified_and_diagnosed(everything, repository) -> None:
    assert (everything.packages / "toolkit/py.typed").is_file()
    everything.succeed("lint", repository)
    everything.succeed("verify", "work/two-ranks/checkpoint", "--against", "tests/fixtures/tiny-llama")
    done = everything.toolkit("doctor", CONFIG, "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("tritonserver", "mpirun", "packages"):
        assert checks[name]["status"] == "ok", checks[name]


@pytest.mark.timeout(600)
def test_its_steps_are_measured(everything, repository) -> None:
    everything.succeed("calibrate", CONFIG, "--budget", 5)
    assert "capacity" in everything.succeed("plan", CONFIG, "--calibration", "work/two-ranks/calibration.json")


def test_without_extras_it_plans_and_lints(everything, repository, wheel, tmp_path) -> None:
    alone = make(tmp_path / "environment", everything.work, wheel)
    assert not (alone.packages / "torch").exists()
    alone.succeed("plan", "build_configs/llama3-70b-h100-tp8-fp16.yaml")
    alone.succeed("build", "--dry-run", FLAGSHIP)
    alone.succeed("lint", repository)
    assert install("rehearsal") in " ".join(alone.toolkit("doctor", CONFIG).stdout.split())
    done = alone.toolkit("loadtest", CONFIG)
    assert (done.returncode, done.stderr) == (3, "") and install("loadtest") in done.stdout


def contents(folder: Path) -> dict[Path, str]:
    """A digest of each file of the installed package, but what Python compiles."""
    files = (path for path in (folder / "toolkit").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
