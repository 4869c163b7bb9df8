"""`toolkit migrate --apply`: how replicas move to another kind of engine, one after the other, or all go back.

The replicas are stand-ins; the traffic is a file that grows.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.commands import toolkit
from tests.up.test_trial import KEPT, Service
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.up import commands, moving, trial
from toolkit.up.candidate import check_other_engine, make
from toolkit.up.commands import Commands, send
from toolkit.up.moving import Moving
from toolkit.up.trial import canary_of, recent


class Moved(Service):
    """Three replicas that are to move."""

    def run(self, interrupted: Callable[[], bool] = lambda: False) -> trial.Outcome:
        self.keep(0, 10, 100)
        one = Moving(
            self.supervisor, canary_of(self.supervisor), self.new, recent(self.old), self.heard.append, interrupted
        )
        one.allow(10)
        one._law.slo = self.old.slo.model_copy(update={"ttft_ms": type(self.old.slo.ttft_ms)(p50=500)})
        return one.run("engine=pytorch")

    def refuse(self, replica: int, count: int) -> None:
        """Requests of a replica that were refused now."""
        with (self.folder / KEPT).open("a") as stream:
            for _ in range(count):
                row = {"timestamp": time.time() * 1e3, "input_length": 1, "output_length": 0, "replica": replica}
                stream.write(json.dumps({**row, "refused": True}) + "\n")


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moved:
    monkeypatch.setattr(moving, "LOOK_S", 0.0)
    return Moved(tmp_path, monkeypatch, replicas=3)


def served(fleet: Moved, canary_ms: float, others_ms: float) -> Callable[[int, str], None]:
    """Once the first has moved, all serve."""

    def serve(replica: int, name: str) -> None:
        if (replica, name) == (2, "new"):
            fleet.keep(2, 200, canary_ms)
            fleet.keep(0, 100, others_ms)
            fleet.keep(1, 100, others_ms)

    return serve


BACK = [(2, "new"), (2, "watched")]
ALL = [(2, "new"), (0, "new"), (1, "new")]


def test_what_serves_as_well_is_followed_by_the_others_one_after_the_other(fleet):
    fleet.during = served(fleet, 100, 100)
    outcome = fleet.run()
    assert outcome.taken and outcome.reason.startswith("not worse by more than 10 %: TTFT P50 ")
    assert fleet.changes == ALL and fleet.supervisor.deployment is fleet.new
    assert [event for event, _ in fleet.events()] == ["trial", "moving", "moved"]
    assert fleet.heard[-2:] == ["2 of 3 replicas moved", "3 of 3 replicas moved"]


def test_what_serves_worse_goes_back(fleet):
    fleet.during = served(fleet, 130, 100)
    outcome = fleet.run()
    assert not outcome.taken and outcome.reason.startswith("worse by more than 10 %: TTFT P50 +")
    assert fleet.changes == BACK and fleet.supervisor.deployment is fleet.old


def test_what_refuses_requests_that_the_others_serve_goes_back(fleet):
    def serve(replica: int, name: str) -> None:
        if name == "new":
            fleet.keep(2, 15, 100)
            fleet.refuse(2, 15)
            fleet.keep(0, 19, 100)
            fleet.refuse(0, 1)

    fleet.during = serve
    assert fleet.run().reason == "replica 2: 15 of 30 requests refused as wrong; the others 1 of 20"
    assert fleet.changes == BACK


def test_what_misses_the_slo_while_the_others_move_takes_all_back(fleet):
    """What has moved is late, while the last one still serves as before."""
    whole = served(fleet, 100, 100)

    def serve(replica: int, name: str) -> None:
        whole(replica, name)
        if (replica, name) == (0, "new"):
            fleet.keep(2, 1000, 900)
            fleet.keep(1, 1000, 100)

    fleet.during = serve
    outcome = fleet.run()
    assert not outcome.taken and outcome.reason.startswith("what has moved misses slo.ttft_ms.p50: 1000 of 1200")
    assert fleet.changes == [(2, "new"), (0, "new"), (0, "watched"), (2, "watched")]
    assert fleet.events()[-1] == ("rolled back", outcome.reason)


def test_an_interrupt_takes_all_back_also_after_the_decision(fleet):
    gone = threading.Event()
    whole = served(fleet, 100, 100)

    def serve(replica: int, name: str) -> None:
        whole(replica, name)
        if (replica, name) == (0, "new"):
            gone.set()

    fleet.during = serve
    assert fleet.run(gone.is_set) == trial.Outcome(False, "interrupted")
    assert fleet.changes == [(2, "new"), (0, "new"), (0, "watched"), (2, "watched")]


def test_a_replica_that_ends_while_another_one_moves_takes_all_back(fleet):
    whole = served(fleet, 100, 100)

    def serve(replica: int, name: str) -> None:
        whole(replica, name)
        if (replica, name) == (0, "new"):
            fleet.supervisor.replicas[2].restarted_as(fleet.new.per_replica()[2])

    fleet.during = serve
    assert fleet.run().reason == "replica 2 does not serve with them: ready"
    assert fleet.changes[:2] == [(2, "new"), (0, "new")] and fleet.supervisor.deployment is fleet.old


def config(folder: Path, model: Path, name: str, **changes: object) -> Deployment:
    content = {
        "engine": "rehearsal",
        "name": name,
        "model": {"path": str(model)},
        "parallel": {"replicas": 2},
        "limits": {"max_sequences": 4, "max_num_tokens": 256, "max_seq_len": 512},
        "monitoring": {"traffic": str(folder / KEPT)},
        "output": str(folder / name),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**content, **changes}))
    return load_deployment(file)


def test_the_other_kind_is_made_next_to_the_one_that_is_up(tmp_path, tiny_llama):
    """It keeps the name, by which OpenAI's clients and the other workers may know it, and needs no engines."""
    old, new = config(tmp_path, tiny_llama, "own"), config(tmp_path, tiny_llama, "twin", engine="pytorch")
    check_other_engine(old, new)
    made = make(old, new, {})
    assert (made.name, made.served_name, made.engine) == ("own", old.served_name, "pytorch")
    assert made.output.parent == old.output / "tuned" and (made.repository_dir / "tensorrt_llm").is_dir()
    assert not made.engine_dir.exists() and not new.output.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "rehearsal"}, "engine: is rehearsal, as that of the deployment that is up. Another kind is needed"),
        ({"parallel": {"replicas": 3}}, "parallel: differs from that of the deployment that is up. Only limits, kv_ca"),
        ({"gateway": {"port": 9999}}, "gateway: differs"),
        ({"limits": {"max_seq_len": 256}}, "limits.max_seq_len: is 256, and 512 in the deployment that is up. Behind"),
        ({"kv_cache": {"tokens_per_block": 64}}, "kv_cache.tokens_per_block: is 64, and 32 in the deployment that is"),
    ],
)
def test_what_cannot_serve_behind_the_same_door_is_one_line(tmp_path, tiny_llama, changes, said):
    old = config(tmp_path, tiny_llama, "own")
    new = config(tmp_path, tiny_llama, "twin", **{"engine": "pytorch", **changes})
    with pytest.raises(ToolkitError) as caught:
        check_other_engine(old, new)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_writes_nothing_unless_it_can_move(tmp_path, tiny_llama):
    file = config(tmp_path, tiny_llama, "own", engine="tensorrt").file
    for options, code, said in (
        (["--apply"], 1, "is not up. Start it: toolkit up"),
        (["--apply", "--with", file], 1, "is not up. Start it: toolkit up"),
        (["--with", file], 2, "--with needs --apply"),
        (["--apply", "--dry-run"], 2, "--apply has no --dry-run"),
        (["--apply", "--allow", "nan"], 2, "--allow: expected a number of per cent"),
        (["--apply", "--allow", "-1"], 2, "-1"),
    ):
        done = toolkit("migrate", file, *options)
        assert (done.returncode, done.stdout) == (code, "") and said in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize("moved", [True, False])
def test_a_rollback_on_one_machine_restarts_only_what_has_moved(fleet, tmp_path, monkeypatch, moved):
    restarted = []
    monkeypatch.setattr(commands, "restart", lambda supervisor, command, tell: restarted.append(command["file"]))
    fleet.supervisor.own, fleet.supervisor.moved = fleet.old, moved
    fleet.supervisor.others = SimpleNamespace(address="")
    listening, heard = Commands(tmp_path / "socket", fleet.supervisor), list[str]()
    send(str(listening.socket), {"do": commands.BACK}, heard.append)
    listening.close()
    assert restarted == ([str(fleet.old.file)] if moved else [])
    assert heard == ([] if moved else ["nothing has moved"])
