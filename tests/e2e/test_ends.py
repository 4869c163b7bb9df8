"""How a group ends: a killed rank, Ctrl-C, SIGTERM. Nothing is left, and it can start again."""

import contextlib
import http.client
import json
import signal
import subprocess
import threading
import time

import pytest

from .conftest import SHAPES
from .group import Group, command, events_of, left_of, processes_of, succeed, text_of, wait_for, write_yaml
from .marks import no_group

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("served"), no_group]


@contextlib.contextmanager
def serving(group: Group):
    """`toolkit serve` in the foreground, ready."""
    errors = group.file.with_suffix(".stderr")
    with errors.open("w") as stream:
        process = subprocess.Popen(command("serve", group.file), stdout=subprocess.PIPE, stderr=stream, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("ready: "), errors.read_text()
        yield process, errors
    finally:
        process.kill()
        process.wait()


class Stream(threading.Thread):
    """Reads one long answer, as far as it comes."""

    def __init__(self, group: Group, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._address, self._max_tokens = group.http, max_tokens
        self.read = b""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        body = {"text_input": "A crab", "max_tokens": self._max_tokens, "end_id": -1, "stream": True}
        connection.request("POST", "/v2/models/tensorrt_llm_bls/generate_stream", json.dumps(body))
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in connection.getresponse():
                self.read += line
                self.begun.set()


def built(folder, model, ranks: int) -> Group:
    file = write_yaml(folder, model, *SHAPES[ranks])
    for name in ("build", "repo"):
        succeed(name, file)
    return Group(file)


def test_kill_9_of_rank_5_under_load(tmp_path, tiny_llama, truth):
    group = built(tmp_path, tiny_llama, 8)
    with serving(group) as (process, errors):
        run = group.run_id
        streams = [Stream(group, 900) for _ in range(8)]
        wait_for(lambda: all(stream.read for stream in streams), "all streams run", within_s=60)
        (rank_5,) = [
            found
            for found in processes_of(run)
            if found.environ().get("OMPI_COMM_WORLD_RANK") == "5" and "tritonserver" in found.name()
        ]
        assert len(left_of(run)) > 16  # servers, models, segments
        rank_5.kill()
        killed = time.monotonic()
        assert process.wait(10) == 1
        assert time.monotonic() - killed < 10
        said = errors.read_text()
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "rank 5 was killed by SIGKILL" in error
    assert f"toolkit serve {group.file}" in error
    assert "Traceback" not in said
    assert left_of(run) == []
    assert json.loads(succeed("status", group.file, "--json"))["phase"] == "failed"
    with serving(group) as (process, errors):
        expected = truth.greedy(truth.ids("A crab"), 20)
        assert group.ask(text_input="A crab", max_tokens=20)["text_output"] == truth.text(expected)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_drains(tmp_path, tiny_llama, truth, number):
    """What runs is finished, nothing new is taken, the exit code is 0."""
    group = built(tmp_path, tiny_llama, 1)
    with serving(group) as (process, errors):
        run = group.run_id
        streams = [Stream(group, 900) for _ in range(4)]
        assert all(stream.begun.wait(10) for stream in streams)
        process.send_signal(number)  # before the engine has shown how many they are
        assert process.wait(40) == 0, errors.read_text()
        said = errors.read_text()
        assert "draining: 4 requests running" in said and "4 requests finished, none cut" in said, said
    for stream in streams:
        stream.join(5)
        events = events_of(stream.read.decode())
        assert len(events) == 900 and text_of(events).startswith(truth.text(truth.greedy(truth.ids("A crab"), 60)))
    assert left_of(run) == []
