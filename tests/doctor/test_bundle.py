"""`toolkit doctor --bundle`: all that tells, nothing secret, whatever is there."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from toolkit.cli.main import cli
from toolkit.doctor import bundle_contents
from toolkit.errors import ToolkitError

SECRETS = {
    "HF_TOKEN": "hf_" + "Ab12Cd34Ef56Gh78Ij90Kl12Mn34Op56Qr",
    "NGC_API_KEY": "nvapi-" + "Zz99" * 16,
    "NCCL_TEST_PASSWORD": "correct horse battery",
}
ELSEWHERE = {"a log": "hf_" + "Zy98Xw76Vu54Ts32Rq10Po98Nm76", "docker": "proxy-pass-word"}
ELSEWHERE |= {"a key": "0a1b-key", "a pass": "0a1b-pass", "a query": "0a1b-signature", "a field": "0a1b-field"}
"""Secrets that no variable has."""


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path, monkeypatch) -> Path:
    """A rehearsal with nothing built, in the working directory, with secrets in the environment."""
    content = {
        "engine": "rehearsal",
        "model": {"path": str(tiny_llama)},
        "limits": {"max_seq_len": 512},
        "output": "work",
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content) + f"# {SECRETS['HF_TOKEN']}\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {**SECRETS, "NCCL_DEBUG": "WARN", "MY_NAME": "my-value"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "x.yaml"


@pytest.fixture
def program(tmp_path: Path, monkeypatch):
    """Puts a program that runs a shell script first on PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return make


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def unpacked(path: Path) -> dict[str, str]:
    """Each file of a bundle; all are in one folder, named as the bundle is."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            folder, _, name = member.name.partition("/")
            assert folder == path.name.removesuffix(".tar.gz") and member.isfile()
            found[name] = archive.extractfile(member).read().decode()
    return found


def half_built(output: Path) -> None:
    """A checkpoint and an engine directory of which only some is there, and a run that failed."""
    for name in (
        "checkpoint",
        "engine.building",
        "repository/tensorrt_llm/1",
        "repository/preprocessing",
        "run",
        "report",
    ):
        (output / name).mkdir(parents=True)
    (output / "checkpoint/lock.json").write_text('{"stage": "checkpoint"}')
    (output / "checkpoint/rank0.safetensors").write_bytes(b"weights-weights")
    (output / "engine.building/lock.json").write_text("{ not whole")
    (output / "repository/tensorrt_llm/config.pbtxt").write_text('name: "tensorrt_llm"')
    (output / "repository/preprocessing/tokenizer.json").write_text("vocabulary-vocabulary")
    (output / "build.log").write_text("[TRT] building\n")
    (output / "run/rank0.log").write_text(
        f"login {ELSEWHERE['a log']}\n--hf-token {SECRETS['HF_TOKEN']}\nend of rank 0\n"
        f"GET https://bucket/model.bin?X-Signature={ELSEWHERE['a query']}&x=1\nmy key: {ELSEWHERE['a key']}\n"
        f"user: me, pass: {ELSEWHERE['a pass']}\n"
    )
    (output / "run/state.json").write_text('{"phase": "failed"}')
    (output / "report/report.json").write_text(
        json.dumps({"verdict": {"outcome": "FAIL"}, "pass": ELSEWHERE["a field"]})
    )
    (output / "calibration.json").write_text('{"rows": []}')


def test_a_machine_without_gpus_and_with_nothing_built(config, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    result = doctor(config, "--bundle")
    (path,) = config.parent.glob("x-bundle-*.tar.gz")
    assert result.stdout.splitlines()[-1] == path.name
    assert result.exit_code == doctor(config).exit_code
    assert "not in the bundle: machine/nvidia-smi-q.txt: nvidia-smi is not on PATH\n" in result.stderr
    assert "not in the bundle: engine/lock.json: no such file\n" in result.stderr
    assert not (config.parent / "work").exists()
    found = unpacked(path)
    assert (
        "engine rehearsal, 1 rank" in found["doctor.txt"] and json.loads(found["doctor.json"])["engine"] == "rehearsal"
    )
    assert json.loads(found["versions.json"])["packages"]["pydantic"]
    assert "parameters" in found["plan.txt"] and json.loads(found["plan.json"])
    assert json.loads(found["deployment.json"])["follows"]["world_size"] == 1
    assert "max_seq_len: 512" in found["config.yaml"]


def test_the_manifest_tells_what_is_in_it_and_what_is_not(config):
    doctor(config, "--bundle", "b.tar.gz")
    assert (config.parent / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    found = unpacked(config.parent / "b.tar.gz")
    manifest = json.loads(found.pop("MANIFEST.json"))
    assert {file["name"]: (file["size"], file["sha256"]) for file in manifest["files"]} == {
        name: (len(text.encode()), hashlib.sha256(text.encode()).hexdigest()) for name, text in found.items()
    }
    assert manifest["missing"]["calibration.json"] == "no such file"


def test_a_deployment_that_is_half_built(config):
    half_built(config.parent / "work")
    doctor(config, "--bundle", "b.tar.gz")
    found = unpacked(config.parent / "b.tar.gz")
    assert json.loads(found["checkpoint/lock.json"]) == {"stage": "checkpoint"}
    assert found["engine.building/lock.json"] == "{ not whole"
    assert found["build.log"] == "[TRT] building\n" and "end of rank 0" in found["run/rank0.log"]
    assert {"repository/tensorrt_llm/config.pbtxt", "run/state.json", "report/report.json", "calibration.json"} <= set(
        found
    )
    assert "checkpoint/rank0.safetensors" in found["files.txt"]
    assert "repository/lock.json" in json.loads(found["MANIFEST.json"])["missing"]


def test_no_weights_no_tokenizer_and_no_secret_gets_in(config, program):
    half_built(config.parent / "work")
    program("docker", f"echo 'HTTP Proxy: http://me:{ELSEWHERE['docker']}@proxy'; echo $NGC_API_KEY")
    program("nvidia-smi", 'echo "C python --key $NGC_API_KEY"; echo "$NCCL_TEST_PASSWORD"')
    doctor(config, "--bundle", "b.tar.gz")
    found = unpacked(config.parent / "b.tar.gz")
    assert "C python --key [secret]" in found["machine/nvidia-smi.txt"]
    assert "HTTP Proxy: http://[secret]@proxy" in found["machine/docker-info.txt"]
    for name, text in found.items():
        for secret in (*SECRETS.values(), *ELSEWHERE.values(), "my-value", "weights-weights", "vocabulary-vocabulary"):
            assert secret not in text, name
    variables = json.loads(found["variables.json"])
    assert variables["values"]["NCCL_DEBUG"] == "WARN" and "NCCL_TEST_PASSWORD" not in variables["values"]
    assert {"MY_NAME", "HF_TOKEN"} <= set(variables["others, without their values"])


def test_of_a_long_log_the_end_and_of_a_link_nothing(config, monkeypatch):
    monkeypatch.setattr(bundle_contents, "LARGEST", 60)
    half_built(config.parent / "work")
    (config.parent / "work/build.log").write_text(f"HF_TOKEN={'s' * 40}\n" + "line of twenty chars\n" * 2)
    (config.parent / "work/run/rank1.log").symlink_to("../checkpoint/rank0.safetensors")
    (config.parent / "work/run/rank2.log").write_bytes(b"\0\1\2")
    doctor(config, "--bundle", "b.tar.gz")
    found = unpacked(config.parent / "b.tar.gz")
    assert found["build.log"] == "[50 bytes before this are left out]\n" + "line of twenty chars\n" * 2
    missing = json.loads(found["MANIFEST.json"])["missing"]
    assert missing["run/rank1.log"].startswith("is a link") and missing["run/rank2.log"] == "is not text"


def test_a_tool_that_fails_or_hangs_stops_nothing(config, program, monkeypatch):
    monkeypatch.setattr(bundle_contents, "TIMEOUT_S", 0.2)
    program("nvidia-smi", '[ "$1" = -q ] && exec sleep 5; echo no devices >&2; exit 9')
    doctor(config, "--bundle", "b.tar.gz")
    found = unpacked(config.parent / "b.tar.gz")
    assert found["machine/nvidia-smi.txt"] == "no devices\n[exit status 9]\n"
    missing = json.loads(found["MANIFEST.json"])["missing"]
    assert missing["machine/nvidia-smi-q.txt"] == "nvidia-smi -q did not end in 0.2 s"


def test_as_data(config):
    result = doctor(config, "--bundle", "b.tar.gz", "--json")
    data = json.loads(result.stdout)
    assert data["bundle"]["path"] == "b.tar.gz" and data["checks"]
    assert data["bundle"]["size"] == (config.parent / "b.tar.gz").stat().st_size


def test_without_a_config_it_is_of_the_machine(config):
    result = doctor("--bundle", "m.tar.gz")
    assert "machine/uname.txt" in unpacked(config.parent / "m.tar.gz"), result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bundle", "x.yaml"], "x.yaml: --bundle: expected a name that ends in .tar.gz"),
        (["x.yaml", "--bundle", "nowhere/b.tar.gz"], "nowhere/b.tar.gz: cannot be written: No such file or directory"),
        (["x.yaml", "--bundle", "folder.tar.gz"], "folder.tar.gz: --bundle: is a directory, expected a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(config, arguments, message):
    (config.parent / "folder.tar.gz").mkdir()
    before = config.read_text()
    result = doctor(*arguments)
    assert isinstance(result.exception, ToolkitError) and str(result.exception).startswith(message)
    assert config.read_text() == before and not list(config.parent.glob(".*.partial"))


def test_a_full_disk_leaves_nothing(config, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    result = doctor(config, "--bundle", "b.tar.gz")
    assert str(result.exception) == "b.tar.gz: could not be written: No space left on device"
    assert [path.name for path in config.parent.iterdir()] == ["x.yaml"]
