"""Wrong requests for both APIs. Each must get a 4xx, and no other request may suffer."""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from urllib.parse import urlsplit

from toolkit.client.openai_client import KEY
from toolkit.config.deployment import Deployment
from toolkit.drill.load import TRITON_MODEL
from toolkit.slo.distribution import Distribution

CHAT = "/v1/chat/completions"
GENERATE = f"/v2/models/{TRITON_MODEL}/generate_stream"
TIMEOUT_S = 60.0
PAUSE_S = 0.25
FEWEST = 10
"""Requests on each side that a ratio needs."""


@dataclass(frozen=True)
class Poison:
    """One wrong request."""

    name: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Answer:
    """The answer to one; no status if the connection ended without an answer."""

    name: str
    path: str
    status: int | None


def poisons(deployment: Deployment, triton: bool) -> Iterator[Poison]:
    """All wrong requests for OpenAI's API; with `triton` also those for Triton's."""
    too_long = "word " * (2 * deployment.limits.max_seq_len)
    for name, text in (("prompt too long", too_long), ("4 MB prompt", "word " * 800_000)):
        yield Poison(name, CHAT, _chat(deployment, text))
        if triton:
            yield Poison(name, GENERATE, json.dumps({"text_input": text, "max_tokens": 4}).encode())
    invalid = _chat(deployment, "?").replace(b"?", b"\xff\xfe")
    yield Poison("120 kB of brackets", CHAT, b"[" * 120_000)
    yield Poison("invalid UTF-8", CHAT, invalid)
    if triton:
        yield Poison("120 kB of brackets", GENERATE, b"[" * 120_000)
        yield Poison("invalid UTF-8", GENERATE, b'{"text_input": "\xff\xfe", "max_tokens": 4}')


def _chat(deployment: Deployment, text: str) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": deployment.served_name, "messages": messages, "max_tokens": 4}).encode()


def send(url: str, poison: Poison) -> Answer:
    """Send one to the door at `url`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request("POST", poison.path, poison.body, headers)
        return Answer(poison.name, poison.path, connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return Answer(poison.name, poison.path, None)
    finally:
        connection.close()


def send_again_and_again(url: str, poisons: Sequence[Poison], ended: threading.Event) -> list[Answer]:
    """Send all of them in turn until `ended`, each at least once."""
    answers: list[Answer] = []
    while len(answers) < len(poisons) or not ended.is_set():
        answers.append(send(url, poisons[len(answers) % len(poisons)]))
        ended.wait(PAUSE_S)
    return answers


def p99_ratio(windows: Sequence[tuple[bool, Sequence[float]]]) -> tuple[float | None, float | None]:
    """P99 in windows with poison divided by P99 in the others, and the probability of such a ratio by chance.

    The probability is from a permutation test over whole windows, because requests of one window share a queue and the
    other load of the machine. None if there are too few requests.
    """
    times = [values for _, values in windows]
    poisoned = tuple(number for number, (label, _) in enumerate(windows) if label)
    if min(_count(times, poisoned), sum(map(len, times)) - _count(times, poisoned)) < FEWEST:
        return None, None
    ratios = [_ratio(times, chosen) for chosen in combinations(range(len(windows)), len(poisoned))]
    measured = _ratio(times, poisoned)
    return measured, sum(ratio >= measured for ratio in ratios) / len(ratios)


def _count(times: Sequence[Sequence[float]], chosen: Sequence[int]) -> int:
    return sum(len(times[number]) for number in chosen)


def _ratio(times: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    above = [value for number in chosen for value in times[number]]
    below = [value for number, values in enumerate(times) if number not in chosen for value in values]
    sides = (Distribution(above).percentile(99) or 0.0, Distribution(below).percentile(99) or math.inf)
    return sides[0] / sides[1]
