"""A deployment with other settings next to the one that is up: its files, and what the command line refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import commands
from tests.up.conftest import write_and_build
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.door import DoorState, PartState
from toolkit.serve.preflight import check_made
from toolkit.up.candidate import make, remove
from toolkit.up.control import UpStatus

SMALL = {"kv_cache.max_tokens": 512}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("candidate")
    file = write_and_build(folder, tiny_llama, "own", parallel={"replicas": 2}, monitoring={"traffic": "kept.jsonl"})
    file.write_text(f"# Ours.\n{file.read_text()}")
    return file


def test_it_is_made_next_to_the_one_that_is_up(built):
    before, own = built.read_text(), load_deployment(built)
    candidate = make(own, own, SMALL)
    assert candidate.file == own.output / "tuned" / candidate.output.name / "own.yaml"
    assert candidate.file.read_text().startswith("# Ours.\n") and built.read_text() == before
    assert (candidate.name, candidate.kv_cache.max_tokens, own.kv_cache.max_tokens) == ("own", 512, None)
    assert candidate.monitoring.traffic == own.monitoring.traffic == built.parent / "kept.jsonl"
    check_made(candidate)
    check_made(own)
    for engine in own.engine_dir.glob("rank*"):
        assert (candidate.engine_dir / engine.name).samefile(engine)
    (own.output / "run").mkdir(exist_ok=True)
    assert candidate.run_dir.resolve() == own.run_dir.resolve(), "state and logs stay where they are looked for"


def test_made_again_its_files_stay_as_they_are(built):
    own = load_deployment(built)
    first = make(own, own, SMALL)
    marks = [(path, path.stat().st_ino) for path in (first.engine_dir, first.repository_dir)]
    again = make(own, own, SMALL)
    assert again.output == first.output and [(path, path.stat().st_ino) for path, _ in marks] == marks
    further = make(own, again, {"scheduler.policy": "max_utilization"})
    assert further.output.parent == first.output.parent and further.kv_cache.max_tokens == 512
    for one in (first, further):
        remove(one)
        assert not one.output.exists()
    assert (own.output / "run").is_dir()


def test_what_needs_other_engines_is_refused(built):
    own = load_deployment(built)
    with pytest.raises(ToolkitError, match=r"limits.max_num_tokens: needs other engines"):
        make(own, own, {"limits.max_num_tokens": 128})
    with pytest.raises(ToolkitError, match=r"max_tokens"):
        make(own, own, {"kv_cache.max_tokens": -1})


def test_the_command_needs_toolkit_up(built):
    for options in (["--apply"], ["--apply", "--with", built]):
        done = commands.toolkit("tune", built, *options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "is not up. Start it: toolkit up" in done.stderr
    done = commands.toolkit("tune", built, "--with", built)
    assert done.returncode == 2 and "--with needs --apply" in done.stderr


def test_the_status_names_the_yaml_that_runs():
    state = DoorState(1, "ready", 0.0, "http://x", (PartState("gate", "running", 0.0),), "s", running="/tuned.yaml")
    assert "  the replicas have the settings of /tuned.yaml" in str(UpStatus(state, running="/tuned.yaml"))
    assert UpStatus(state, running="/tuned.yaml").data()["running_other"] == "/tuned.yaml"
    assert "settings of" not in str(UpStatus(state))
