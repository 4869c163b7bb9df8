"""What holds for every target: locked to the YAML, written whole, and no other work is replaced."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.deploy.folders import SITE, change, deploy, deployed, refused
from toolkit.cli.deploy import deploy as command
from toolkit.config.load import load_deployment
from toolkit.deploy.deploy import TARGETS
from toolkit.deploy.wheel import FILE, wheel


@pytest.fixture
def config(config) -> Path:
    return change(config, deploy=SITE)


EVERY = pytest.mark.parametrize("target", TARGETS)


def test_the_command_offers_every_target():
    (option,) = (parameter for parameter in command.params if parameter.name == "target")
    assert list(option.type.choices) == list(TARGETS)


@EVERY
def test_the_same_yaml_gives_the_same_bytes(config, tmp_path, target):
    first, second = deployed(config, target, tmp_path / "out"), tmp_path / "again"
    before = {path.name: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    first.rename(second)
    wheel.cache_clear()
    deployed(config, target, tmp_path / "out")
    assert before == {path.name: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    lock = json.loads((first / "lock.json").read_text())
    assert (lock["stage"], lock["settings"]["target"]) == ("deploy", target)


@EVERY
def test_a_second_time_there_is_nothing_to_do(config, tmp_path, target):
    folder = deployed(config, target, tmp_path / "out")
    inode = (folder / "README.md").stat().st_ino
    result = deploy(config, target, folder)
    assert result.exit_code == 0 and "nothing to do" in result.stderr
    assert (folder / "README.md").stat().st_ino == inode


@EVERY
def test_what_is_there_is_checked(config, tmp_path, target):
    folder = deployed(config, target, tmp_path / "out")
    assert deploy(config, target, folder, "--check").exit_code == 0
    (folder / "README.md").write_text("by hand")
    (folder / "notes.txt").write_text("mine")
    yaml = next(folder.rglob(f"{config.stem}.yaml"))
    yaml.unlink()
    result = deploy(config, target, folder, "--check")
    assert result.exit_code == 1
    assert set(result.stdout.splitlines()) == {
        "README.md: differs",
        f"{yaml.relative_to(folder)}: is missing",
        "notes.txt: would not be written",
    }
    answer = json.loads(deploy(config, target, folder, "--check", "--json").stdout)
    assert answer["differences"]["README.md"] == "differs"


@EVERY
def test_a_yaml_that_has_changed_since(config, tmp_path, target):
    folder = deployed(config, target, tmp_path / "out")
    change(config, gateway={"port": 8099})
    result = deploy(config, target, folder, "--check")
    assert result.exit_code == 1
    assert f"lock.json: {config} has changed since" in result.stdout.splitlines()
    assert f"{config.stem}.yaml: differs" in result.stdout
    deployed(config, target, folder)
    assert deploy(config, target, folder, "--check").exit_code == 0


@EVERY
def test_other_work_is_never_replaced(config, tmp_path, target):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert "holds notes.txt and no lock.json" in refused(config, target, folder)
    (folder / "notes.txt").unlink()
    deployed(config, target, folder)
    (folder / "notes.txt").write_text("mine")
    assert "holds notes.txt, which toolkit deploy did not write" in refused(config, target, folder)
    (folder / "notes.txt").unlink()
    (folder / "README.md").write_text("by hand")
    change(config, gateway={"port": 8099})
    assert "README.md: was changed after it was written" in refused(config, target, folder)
    assert (folder / "README.md").read_text() == "by hand"


@EVERY
def test_what_other_commands_made_is_refused(config, tmp_path, target):
    folder = tmp_path / "out"
    folder.mkdir()
    lock = {"stage": "engine", "inputs": {}, "settings": {}, "versions": {}}
    (folder / "lock.json").write_text(json.dumps(lock))
    assert f"holds a engine, not for {target}" in refused(config, target, folder)
    lock |= {"stage": "deploy", "settings": {"target": "abacus"}}
    (folder / "lock.json").write_text(json.dumps(lock))
    assert f"holds files for abacus, not for {target}" in refused(config, target, folder)


@EVERY
def test_check_of_nothing(config, tmp_path, target):
    line = refused(config, target, tmp_path / "nowhere", "--check")
    assert "nothing was deployed here. Run: toolkit deploy" in line
    assert not (tmp_path / "nowhere").exists()


@EVERY
@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"hardware": {"gpus": 2}}, "parallel: tp 2 x pp 1 x replicas 2 needs 4 GPUs, hardware.gpus is 2"),
        ({"engine": {"kind": "tensorrt", "version": "9.9.9"}}, "engine.version"),
        ({"deploy": {"image": "two words"}}, "deploy.image"),
        ({"deploy": {"claim": "A_B"}}, "deploy.claim"),
    ],
)
def test_a_deployment_that_cannot_be(config, tmp_path, target, sections, line):
    assert line in refused(change(config, **sections), target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_the_image_of_a_release_that_is_in_none(config, tmp_path):
    change(config, engine={"kind": "tensorrt", "version": "1.2.9"})
    line = refused(config, "compose", tmp_path / "out")
    assert "runtime.image: no image of NVIDIA's has TensorRT-LLM 1.2.9" in line
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_the_wheel_is_one(tmp_path):
    """pip itself installs it, and finds every digest right; the command in it runs without the repository."""
    file = tmp_path / FILE
    file.write_bytes(wheel())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "in"]
    subprocess.run([*pip, file], check=True)
    program = "import toolkit, toolkit.cli.main as m; print(toolkit.__file__); m.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "--version"],
        env={"PYTHONPATH": str(tmp_path / "in")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[0] == str(tmp_path / "in/toolkit/__init__.py"), done.stderr
    assert done.stdout.splitlines()[1].startswith("toolkit ")
    names = zipfile.ZipFile(file).namelist()
    assert not [name for name in names if "__pycache__" in name]
    for needed in ("toolkit/deploy/texts/compose.yaml.j2", "toolkit/bundled/triton_repo/shared/token_text.py"):
        assert needed in names, Path(needed)


def test_kept_traffic_has_a_place(config, tmp_path):
    """A folder that the container can write to; of several jobs or pods, each has a file of its own."""
    change(config, monitoring={"traffic": "../kept/served.jsonl"})
    place = config.parent / "../kept"
    compose = deployed(config, "compose", tmp_path / "compose")
    volumes = yaml.safe_load((compose / "compose.yaml").read_text())["services"]["serve"]["volumes"]
    mount = next(one for one in volumes if one["source"].endswith("/kept"))
    assert Path(mount["source"]).resolve() == place.resolve() and not mount.get("read_only")
    assert load_deployment(compose / config.name).monitoring.traffic == load_deployment(config).monitoring.traffic
    serve = deployed(config, "slurm", tmp_path / "slurm") / "serve" / config.name
    assert load_deployment(serve).monitoring.traffic == serve.parent / "served.jsonl"
    chart = deployed(config, "kubernetes", tmp_path / "kubernetes") / "chart"
    inside = yaml.safe_load((chart / "files" / config.name).read_text())["monitoring"]["traffic"]
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert Path(inside) == Path(values["traffic"], "served.jsonl")


def test_traffic_below_the_output_needs_no_mount(config, tmp_path):
    output = load_deployment(config).output
    change(config, monitoring={"traffic": str(output / "served.jsonl")})
    text = (deployed(config, "compose", tmp_path / "out") / "compose.yaml").read_text()
    assert text.count(f'target: "{output}') == 1
