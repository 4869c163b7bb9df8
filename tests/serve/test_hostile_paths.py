"""A clone, a model and an output in a folder whose name means something to a shell, to a list of folders, to ASCII.

Triton starts the processes of Python models through a shell, with the path of the model in it, and their Python takes
every file name for ASCII.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import toolkit
from tests.ports import free_ports
from toolkit.config.sections import PORTS

pytestmark = pytest.mark.slow

ROOT = Path(toolkit.__file__).parents[1]
FOLDER = 'my dép$(touch PWNED)ôt\'s "💥" `touch PWNED`; &\n#*'


@pytest.fixture
def clone(tmp_path, tiny_llama, monkeypatch) -> Path:
    """A clone, as far as links make one, with a deployment of two ranks."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("toolkit", "triton_repo", "loadtest", "build_configs", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_llama, folder / "model")
    content = {
        "engine": "rehearsal",
        "model": {"path": "model"},
        "parallel": {"tp": 1, "pp": 2},
        "limits": {"max_sequences": 8, "max_num_tokens": 128, "max_seq_len": 128},
        "kv_cache": {"max_tokens": 1024},
        "hardware": {"gpu": "none"},
        "serving": dict(zip(PORTS, free_ports(), strict=True)),
        "output": "out",
        "loadtest": {"users": 2, "requests": 8, "max_tokens": 8},
    }
    (folder / "trial.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("HOME", str(tmp_path / "home-"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_the_whole_chain_in_a_folder_of_such_a_name(clone, tmp_path):
    def run(*arguments: str) -> str:
        command = [".venv/bin/python", "-m", "toolkit", *arguments]
        ran = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, f"{arguments}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    run("build", "trial.yaml")
    run("repo", "trial.yaml")
    run("lint", "out/repository", "--engine", "out/engine")
    run("serve", "trial.yaml", "--detach")
    try:
        for protocol in ("--http", "--grpc"):
            assert run("ask", "trial.yaml", protocol, "--max-tokens", "8", "A crab").strip()
        assert "PASS" in run("loadtest", "trial.yaml", "--no-self-check")
    finally:
        stopped = run("stop", "trial.yaml")
    assert "none cut" in stopped
    assert [path for path in tmp_path.rglob("*PWNED*") if "💥" not in path.name] == []
