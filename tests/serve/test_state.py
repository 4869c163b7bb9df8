"""What a state file may make `toolkit stop` and `toolkit serve` do: no more than to clean up after a run of ours."""

import json
import os
import time

import pytest

from toolkit.serve import status, stop
from toolkit.serve.janitor import SHARED_MEMORY, ServerRun
from toolkit.serve.state import ServerState, read_state, write_state


@pytest.fixture
def deployment(deploy):
    deployment = deploy()
    deployment.run_dir.mkdir(parents=True)
    return deployment


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return ServerRun.new()


def state_file(deployment):
    return deployment.run_dir / "state.json"


def left_by(run: ServerRun) -> dict[str, object]:
    """What the state file of a run says whose supervisor was killed."""
    return {"phase": "ready", "pid": 1, "run_id": run.id, "tmp": str(run.tmp), "since": time.time(), "message": ""}


def test_what_a_run_left_is_removed(deployment, run):
    write_state(deployment, ServerState("ready", os.getpid(), run.id, str(run.tmp)))
    segment = SHARED_MEMORY / f"{run.shm_prefix}0-x"
    segment.touch()
    assert stop(deployment) == "nothing was running"
    assert not run.tmp.exists() and not segment.exists()


@pytest.mark.parametrize("name", ["", ".", "/", "precious", "link", "toolkit-run-00000000-x"])
def test_no_other_folder_is_removed(deployment, run, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for folder in ("precious", "toolkit-run-00000000-x"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    (tmp_path / "link").symlink_to("precious")
    folder = name if name in ("", ".", "/") else str(tmp_path / name)
    state_file(deployment).write_text(json.dumps({**left_by(run), "tmp": folder}))
    before = {*tmp_path.rglob("*")}
    assert stop(deployment) == "nothing was running"
    file = state_file(deployment)
    assert {*tmp_path.rglob("*")} == before - {file} | {file.with_suffix(".damaged")}


def test_a_link_that_has_the_name_of_a_run_s_folder_is_not_followed(deployment, run, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    run.tmp.rmdir()
    run.tmp.symlink_to(precious)
    state_file(deployment).write_text(json.dumps(left_by(run)))
    stop(deployment)
    assert precious.is_dir() and run.tmp.is_symlink()


@pytest.mark.parametrize("run_id", ["*", "", "..", "1a2b3c4", "1A2B3C4D", "????????", "1a2b3c4d\n"])
def test_an_id_that_no_run_has_touches_no_shared_memory(deployment, run, run_id):
    others = SHARED_MEMORY / f"{run.shm_prefix}0-other"
    others.touch()
    try:
        state_file(deployment).write_text(json.dumps({**left_by(run), "run_id": run_id}))
        stop(deployment)
        assert others.exists()
    finally:
        others.unlink()


DAMAGED = [
    ("", "is not valid JSON"),
    ("[]", "holds a JSON list"),
    ('{"phase": "ready"}', "run_id: None has the wrong type"),
    ("\udcff", "is not valid JSON"),
    ({"phase": "flying"}, "phase: 'flying' is unknown"),
    ({"pid": -4}, "pid -4 or since"),
    ({"pid": "x"}, "pid: 'x' has the wrong type"),
    ({"since": 1e300}, "or since 1e+300 is impossible"),
    ({"since": float("nan")}, "or since nan is impossible"),
    ({"message": 7}, "message: 7 has the wrong type"),
    ({"tmp": "a" * 10_000}, "do not belong to a run"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_damaged_state_is_said_and_set_aside(deployment, run, caplog, content, message):
    text = content if isinstance(content, str) else json.dumps({**left_by(run), **content})
    state_file(deployment).write_bytes(text.encode(errors="surrogateescape"))
    assert read_state(deployment) is None
    (line,) = caplog.messages
    assert line.startswith(f"{state_file(deployment)}: ") and message in line and len(line) < 700
    assert line.endswith(f". It was renamed to {state_file(deployment).with_suffix('.damaged')}.")
    assert not state_file(deployment).exists()
    assert (status(deployment).phase, read_state(deployment)) == ("stopped", None)


def test_where_no_new_file_can_be_written_the_old_state_is_overwritten(deployment, run):
    loading = ServerState("loading", os.getpid(), run.id, str(run.tmp), message="a long message " * 20)
    ready = loading.next("ready")
    state_file(deployment).with_suffix(".partial").mkdir()
    assert not write_state(deployment, loading), "there is no old one"
    state_file(deployment).with_suffix(".partial").rmdir()
    write_state(deployment, loading)
    state_file(deployment).with_suffix(".partial").mkdir()
    assert write_state(deployment, ready)
    assert read_state(deployment) == ready
