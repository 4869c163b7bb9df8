"""Logs do not fill the disk, and the program that writes one does not notice."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from toolkit.files.bounded import keep_bounded
from toolkit.serve import logs as serve_logs
from toolkit.up.backoff import Backoff
from toolkit.up.events import Events
from toolkit.up.logs import EVERY_S, Logs
from toolkit.up.part import Part, Start


def test_a_small_log_stays(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("12345")
    keep_bounded(log, 6)
    assert log.read_text() == "12345" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError):
        keep_bounded(tmp_path / "none.log")


def test_who_appends_goes_on_in_an_empty_log(tmp_path):
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        for line in (b"one", b"two", b"three"):
            writer.write(line)
            keep_bounded(log, 3)
            assert not log.read_bytes()
        writer.write(b"x")
    assert log.read_bytes() == b"x"
    older = tmp_path / "a.log.1"
    assert older.read_bytes() == b"three" and stat.S_IMODE(older.stat().st_mode) == 0o600


def test_the_logs_of_a_running_part_stay_bounded(tmp_path):
    """A part that writes 1 MB, 10 kB at most in each of its files."""
    part, logs, now = Part("loud", Backoff(1.0, 1.0, 1)), Logs(tmp_path, 10_000), 0.0
    part.start(
        Start(
            ["sh", "-c", "i=0; while [ $i -lt 1000 ]; do printf '%01000d' $i; i=$((i+1)); done; read _"],
            os.environ,
            tmp_path / "loud.log",
        )
    )
    log, written = tmp_path / "loud.log", 0
    assert part.process
    part.process.stdin.close()  # type: ignore[union-attr]
    while part.alive:
        now += EVERY_S
        logs.look(now)
        written = max(written, log.stat().st_size)
    logs.look(now + EVERY_S)
    assert log.stat().st_size < 10_000
    assert b"\0" not in (tmp_path / "loud.log.1").read_bytes(), "a hole, as without appending"


def test_events_and_the_door_s_log_are_bounded_and_nothing_else(tmp_path):
    events = Events(tmp_path)
    for name in ("access.jsonl", "up.json", "prometheus.yml"):
        (tmp_path / name).write_text("x" * 200)
    for number in range(5):
        events.note("gate", "ended", str(number))
    Logs(tmp_path, 100).look(0.0)
    events.note("gate", "ended", "5")
    assert (
        '"cause": "5"' in (tmp_path / "events.jsonl").read_text() and '"4"' in (tmp_path / "events.jsonl.1").read_text()
    )
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes["access.jsonl"] == 0 and sizes["access.jsonl.1"] == sizes["up.json"] == sizes["prometheus.yml"] == 200


def test_a_rank_s_log_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_logs, "MOST_BYTES", 100)
    logs = serve_logs.Logs(tmp_path, 1, lambda _: None, verbose=False)
    read, write = os.pipe()
    with os.fdopen(read) as stream, os.fdopen(write, "w") as rank:
        logs.follow(stream)
        for number in range(100):
            rank.write(f"[1,0]<stdout>:line {number:05}\n")
        rank.close()
        logs.finish(30)
    files = [Path(tmp_path, name).read_text().split() for name in ("rank0.log.1", "rank0.log")]
    numbers = [int(word) for words in files for word in words if word != "line"]
    assert numbers == list(range(numbers[0], 100)) and numbers[0] >= 80
