"""Streams at once against the probe, and by how much the times a client reports differ from the truth.

Run as a program it measures in a process of its own, with threads or under gevent as Locust works, and
prints JSON: every stream, and the CPU seconds that a second took.

    python measure.py threads|gevent URL STREAMS TOKENS ROUNDS WAITING
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()

import contextlib
import json
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from toolkit.client import Client, DeadlineExceeded, Event, GenerateRequest, connect


@dataclass(frozen=True)
class Stream:
    """Seconds on the clock of time.perf_counter(), which the probe shares."""

    asked: float
    arrived: float
    """When the server had the request."""
    sent: list[float]
    received: list[float]

    def errors_ms(self) -> list[float]:
        return [(received - sent) * 1e3 for received, sent in zip(self.received, self.sent, strict=True)]


def one_stream(client: Client, tokens: int) -> Stream:
    asked = time.perf_counter()
    events = list(client.generate_stream(GenerateRequest("measure", tokens), deadline_s=60))
    events = [event for event in events if event.text]  # OpenAI's last one says only why the answer ends
    moments = [_moments(event) for event in events]
    sent, arrived = [sent for sent, _ in moments], moments[0][1]
    return Stream(asked, arrived, sent, [event.received for event in events])


def _moments(event: Event) -> tuple[float, float]:
    """(when the event was sent, when the request had arrived): of OpenAI's API they are the text."""
    outputs = event.outputs
    found = (outputs["last_token_time_ns"], outputs["arrival_time_ns"]) if outputs else event.text.split()
    return int(found[0]) / 1e9, int(found[1]) / 1e9


def streams_at_once(url: str, streams: int, tokens: int, rounds: int = 1, waiting: int = 0) -> list[Stream]:
    """Each of `streams` threads (greenlets under gevent) has a client of its own and asks `rounds` times.

    `waiting` more have asked before and get no answer all the while.
    """
    done: list[Stream] = []

    def user() -> None:
        with connect(url) as client:
            done.extend(one_stream(client, tokens) for _ in range(rounds))

    def waiter() -> None:
        with connect(url) as client, contextlib.suppress(DeadlineExceeded):
            next(client.generate_stream(GenerateRequest("mute", 1), deadline_s=60))

    for _ in range(waiting):
        threading.Thread(target=waiter, daemon=True).start()
    users = [threading.Thread(target=user) for _ in range(streams)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert len(done) == streams * rounds, "a stream failed"
    return done


def in_own_process(
    how: str, url: str, streams: int, tokens: int, rounds: int = 1, waiting: int = 0
) -> tuple[list[Stream], float]:
    """(streams, CPU seconds a second) of streams_at_once in a new process, `how` being threads or gevent."""
    numbers = map(str, (streams, tokens, rounds, waiting))
    command = [sys.executable, str(Path(__file__)), how, url, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return [Stream(**stream) for stream in answer["streams"]], answer["cpu"]


if __name__ == "__main__":
    url, streams, tokens, rounds, waiting = sys.argv[2], *map(int, sys.argv[3:])
    cpu, wall = time.process_time(), time.perf_counter()
    done = streams_at_once(url, streams, tokens, rounds, waiting)
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    print(json.dumps({"streams": [vars(stream) for stream in done], "cpu": busy}))
