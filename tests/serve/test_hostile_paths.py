"""Triton starts the processes of Python models through a shell, with the path of the model in it."""

import http.client
import json
import signal
import sys
from pathlib import Path

import pytest
import yaml

import toolkit
from toolkit.config import Deployment

from .conftest import write_engine_and_repository

pytestmark = pytest.mark.slow

FOLDER = 'my dép$(touch ${HOME}PWNED)ôt\'s "💥" `touch PWNED`; &\n#*'


def clone_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python of a clone in the folder, as far as links make one."""
    (folder / "toolkit").symlink_to(Path(toolkit.__file__).parent)
    (folder / ".venv").symlink_to(sys.prefix)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / ".venv" / "bin" / Path(sys.executable).name


def test_a_folder_of_characters_that_mean_something_to_a_shell(deploy, start, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home-"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / FOLDER / "cache"))
    plain = deploy(pp=2)
    content = yaml.safe_load(plain.file.read_text())
    content["output"] = str(tmp_path / FOLDER / "out")
    (tmp_path / FOLDER / "cache").mkdir(parents=True)
    file = tmp_path / FOLDER / "trial.yaml"
    file.write_text(yaml.safe_dump(content))
    deployment = Deployment.load(file)
    write_engine_and_repository(deployment)
    serving = start(deployment, python=str(clone_in(tmp_path / FOLDER, monkeypatch))).wait_ready()
    connection = http.client.HTTPConnection("127.0.0.1", deployment.serving.http_port, timeout=60)
    body = json.dumps({"text_input": "x", "max_tokens": 3})
    connection.request("POST", "/v2/models/tensorrt_llm_bls/generate_stream", body)
    assert connection.getresponse().read().count(b"data: ") == 3
    connection.close()
    serving.send(signal.SIGTERM)
    assert serving.ended(20) == 0
    assert serving.left() == []
    assert [path for path in tmp_path.rglob("*PWNED*") if "💥" not in path.name] == []
