"""`toolkit tune --apply` on two real replicas under load: better settings are taken, worse ones are rolled back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import openai

from tests import commands
from tests.monitor.test_real import pace
from tests.up.conftest import Up, write_and_build
from toolkit.config.deployment import Deployment
from toolkit.up.candidate import make

CLIENTS, TOKENS = 16, 2
NARROW = {"max_tokens": 96}
"""Three blocks: three of these requests at once, and the others of a replica wait. A step takes 0.11 s (`pace`)."""
WIDE = {"max_tokens": 1024}
MODEL = "tensorrt_llm/1/model.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Up]:
    file = write_and_build(
        tmp_path_factory.mktemp("apply"),
        tiny_llama,
        "narrow",
        parallel={"replicas": 2},
        limits={"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 96, "max_queue_size": 64},
        kv_cache=NARROW,
        monitoring={"exporter": False, "prometheus": "off", "traffic": "kept.jsonl"},
    )
    running = Up(file)
    pace(running.deployment.repository_dir / MODEL)
    running.start()
    yield running
    running.end()


@contextmanager
def load(up: Up, clients: int = CLIENTS) -> Iterator[Counter[str]]:
    """Clients that ask again and again. Counts their answers, and their errors."""
    answers: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            while not over.is_set():
                try:
                    pieces = client.completions.create(
                        model="llama", prompt="Shall I", max_tokens=TOKENS, temperature=0, stream=True
                    )
                    answers["".join(piece.choices[0].text for piece in pieces if piece.choices)] += 1
                except openai.APIError as error:
                    answers[f"error: {error}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def with_cache(up: Up, kv_cache: dict[str, int]) -> Path:
    """The YAML with another KV cache."""
    content = yaml.safe_load(up.file.read_text())
    file = up.file.with_name("other.yaml")
    file.write_text(yaml.safe_dump({**content, "kv_cache": kv_cache}))
    return file


@pytest.fixture(autouse=True)
def candidates_are_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pace the model of each candidate too."""

    def paced(*arguments: Any) -> Deployment:
        made = make(*arguments)
        pace(made.repository_dir / MODEL)
        return made

    monkeypatch.setattr("toolkit.up.control.make", paced)


def events(up: Up) -> list[str]:
    return [event["event"] for event in up.events() if event["part"] == "tuning"]


def test_without_traffic_there_is_nothing_to_compare(narrow):
    done = commands.toolkit("tune", narrow.file, "--apply", "--with", with_cache(narrow, WIDE))
    assert (done.returncode, done.stdout) == (1, "")
    assert "kept.jsonl has no request of the last 10 minutes" in done.stderr


def test_better_settings_are_taken_and_worse_ones_are_rolled_back(narrow):
    with load(narrow) as answers:
        while sum(answers.values()) < 2 * CLIENTS:
            threading.Event().wait(0.1)
        written = narrow.file.with_name("written.yaml")
        options = ["--with", with_cache(narrow, WIDE), "--write", written]
        taken = commands.toolkit("tune", narrow.file, "--apply", *options)
        assert taken.returncode == 0, taken.stderr
        assert taken.stdout.startswith("taken: better: TTFT P50 -"), taken.stdout
        assert events(narrow) == ["trial", "taken"]
        assert "tuned/" in commands.toolkit("status", narrow.file).stdout
        assert narrow.deployment.kv_cache.max_tokens == NARROW["max_tokens"], "the YAML stays as it is"
        assert yaml.safe_load(written.read_text())["kv_cache"] == WIDE

        back = commands.toolkit("tune", narrow.file, "--apply", "--with", with_cache(narrow, NARROW))
        assert back.returncode == 1, back.stderr
        assert back.stdout.startswith("rolled back: worse: TTFT P50 +"), back.stdout
        assert events(narrow)[2:] == ["trial", "rolled back"]
    narrow.wait_ready()
    assert len(answers) == 1, answers
