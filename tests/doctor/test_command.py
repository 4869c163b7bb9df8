"""`toolkit doctor` as a person meets it, on this very machine."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.commands import toolkit
from tests.doctor.fake_nvml import h100s
from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.files.distribution import install
from toolkit.machine import gpus
from toolkit.serve.state import exclusive

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path) -> Path:
    """A rehearsal of a copy of the tiny model, with output and ports of its own."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    with contextlib.ExitStack() as open_now:
        servers = [open_now.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [server.getsockname()[1] for server in servers]
    content = {
        "engine": "rehearsal",
        "model": {"path": "model"},
        "parallel": {"tp": 2, "pp": 2},
        "limits": {"max_seq_len": 512},
        "serving": dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True)),
        "output": "work",
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "x.yaml"


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    return toolkit("doctor", *arguments)


def checks(result) -> dict[str, dict[str, str]]:
    output = getattr(result, "stdout", None) or result.output
    return {check["name"]: check for check in json.loads(output)["checks"]}


def test_this_machine_can_rehearse(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = doctor()
    assert (result.returncode, result.stderr) == (0, "next: toolkit doctor CONFIG\n"), result.stdout
    assert "this machine can rehearse" in result.stdout and "Deployment" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_a_rehearsal_can_run_here(config):
    result = doctor(config)
    assert (result.returncode, result.stderr) == (0, f"next: toolkit build {config}\n"), result.stdout
    assert "1 file of weights, 1.6 MB" in " ".join(result.stdout.split())
    assert not (config.parent / "work").exists(), "it changes nothing"


def test_as_data(config):
    result = doctor(config, "--json")
    data = json.loads(result.stdout)
    assert (data["engine"], data["errors"], data["config"]) == ("rehearsal", 0, str(config))
    assert data["machine"]["host"]["cores"] == os.cpu_count()
    assert data["machine"]["programs"]["packages"]["nvidia-pytriton"] == "0.7.0"
    assert {check["status"] for check in data["checks"]} <= {"ok", "warning"}
    assert checks(result)["backends"]["found"] == "python"


def test_the_flagship_cannot_run_on_a_machine_without_gpus():
    if gpus.look_at_gpus().seen:
        pytest.skip("this machine has GPUs")
    result = doctor(FLAGSHIP)
    assert (result.returncode, result.stderr) == (1, "")
    assert len(re.findall(r"^  error    GPUs ", result.stdout, re.MULTILINE)) == 1
    text = " ".join(result.stdout.split())
    assert "needs 8, one for each rank -> Run this on the GPU node" in text
    assert "this deployment cannot run here" in text


def test_the_same_yaml_for_another_engine(config):
    assert doctor(config, "--engine", "tensorrt").returncode == 1


def test_on_eight_h100(monkeypatch):
    """The command as a whole with another NVML: the rest of the machine is this one."""
    monkeypatch.setattr(gpus, "load_library", h100s)
    found = checks(CliRunner().invoke(cli, ["doctor", str(FLAGSHIP), "--json"]))
    assert [found[name]["status"] for name in ("GPUs", "GPU kind", "GPU memory", "driver", "NVLink")] == ["ok"] * 5


def test_a_missing_model_is_an_error_line(config):
    content = yaml.safe_load(config.read_text())
    content["model"]["config"] = json.loads((config.parent / "model/config.json").read_text())
    config.write_text(yaml.safe_dump(content))
    shutil.rmtree(config.parent / "model")
    result = doctor(config, "--json")
    found = checks(result)
    assert (result.returncode, found["model"]["status"]) == (1, "error")
    assert found["model"]["fix"].endswith(f"toolkit sample smollm2 {config.parent / 'model'}")
    assert found["disk"]["needed"] == "3.4 MB = 1.8 MB checkpoint + 1.6 MB model"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda model: (model / "model.safetensors").unlink(), "holds no *.safetensors"),
        (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda model: (model / "model.safetensors").write_bytes(b"\0" * 99), "is not a whole safetensors file"),
    ],
)
def test_a_model_that_is_not_whole(config, spoil, message):
    spoil(config.parent / "model")
    found = checks(doctor(config, "--json"))["model"]
    assert found["status"] == "error" and message in found["found"] and found["fix"]


def test_what_is_made_needs_no_disk_again(config):
    assert checks(doctor(config, "--json"))["disk"]["needed"] == "1.8 MB checkpoint"
    assert toolkit("convert", config).returncode == 0
    assert checks(doctor(config, "--json"))["disk"]["needed"] == ""


def test_what_a_conversion_that_was_cut_off_has_on_disk_is_not_needed_again(config):
    partial = config.parent / "work/checkpoint.partial"
    partial.mkdir(parents=True)
    (partial / "rank0.safetensors").write_bytes(b"\0" * 1_000_000)
    assert checks(doctor(config, "--json"))["disk"]["needed"] == "0.8 MB checkpoint"


def test_a_port_that_is_taken(config):
    port = load_deployment(config).serving.grpc_port
    with socket.create_server(("127.0.0.1", port)):
        result = doctor(config, "--json")
        found = checks(result)
        assert result.returncode == 1 and f"taken by process {os.getpid()}" in found["grpc_port"]["found"]
        with exclusive(load_deployment(config)):  # what `toolkit serve` holds while it runs
            result = doctor(config, "--json")
            assert result.returncode == 0
            assert f"this deployment is running (process {os.getpid()})" in checks(result)["ports"]["found"]


def test_an_output_that_cannot_be_written(config, monkeypatch):
    real = os.access  # root may write everywhere, so the permission itself cannot be tried
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    result = CliRunner().invoke(cli, ["doctor", str(config), "--json"])
    assert checks(result)["disk"]["status"] == "error"


def test_a_damaged_repository_does_not_stop_it(config):
    model = config.parent / "work/repository/tensorrt_llm"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text("name: [")
    assert doctor(config).returncode == 0


def test_no_tritonserver_is_an_error_line_with_the_command_that_installs_it(config, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytriton" else real(name))
    monkeypatch.setattr("toolkit.serve.tritonserver.NGC_BINARY", Path("/nowhere/tritonserver"))
    for arguments in ([], [str(config)]):
        result = CliRunner().invoke(cli, ["doctor", *arguments, "--json"])
        found = checks(result)["tritonserver"]
        assert result.exit_code == 1 and found["status"] == "error"
        assert found["fix"] == f"Run: {install('rehearsal')}"
    assert install("rehearsal") in CliRunner().invoke(cli, ["doctor"]).output


def test_names_that_would_move_the_cursor_are_shown_escaped(config):
    named = config.parent / "mo\x1b[2Jdel"
    (config.parent / "model").rename(named)
    content = yaml.safe_load(config.read_text())
    content["model"]["path"] = str(named)
    config.write_text(yaml.safe_dump(content))
    result = doctor(config)
    assert "\x1b" not in result.stdout
    assert "mo\\x1b[2Jdel" in "".join(result.stdout.split()), "lines are 100 wide, so a long path is folded"


def test_an_engine_without_a_config():
    result = doctor("--engine", "tensorrt")
    assert result.returncode == 2 and "--engine needs a CONFIG" in result.stderr


def test_a_bad_config_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_text("engine: rehearsal\nmodel: {path: .}\nnonsense: 1\n")
    result = doctor(tmp_path / "x.yaml")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and "nonsense: unknown key" in result.stderr
