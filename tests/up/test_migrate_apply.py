"""`toolkit migrate --apply` under load: two real replicas move to another kind of engine behind one door.

Rehearsed engines move to engine: pytorch, with a stand-in for the LLM API that is faster than they are here.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import openai

from tests import commands
from tests.llm_api import make_repository, put_tritonserver_on_path
from tests.monitor.test_real import pace
from tests.up.conftest import Up, write_and_build
from tests.up.test_apply import MODEL, load
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.up.candidate import make

CLIENTS = 4
"""Few, as replicas start and stop next to them."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("migrate")
    file = write_and_build(
        folder,
        tiny_llama,
        "engines",
        parallel={"replicas": 2},
        limits={"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 96, "max_queue_size": 64},
        hardware={},
        monitoring={"exporter": False, "prometheus": "off", "traffic": "kept.jsonl"},
    )
    running = Up(file)
    pace(running.deployment.repository_dir / MODEL)
    with pytest.MonkeyPatch.context() as patch:
        put_tritonserver_on_path(folder, patch)
        patch.setenv("LLM_DOUBLE_STEP_S", "0.05")
        running.start()
        yield running
        running.end()


@pytest.fixture(autouse=True)
def with_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_with_it(*arguments: Any) -> Deployment:
        candidate = make(*arguments)
        make_repository(candidate)
        return candidate

    monkeypatch.setattr("toolkit.up.control.make", made_with_it)


def have_engines(up: Up) -> list[bool]:
    """Whether the server of each replica has the models that only a repository with engines has."""
    found = []
    for replica in up.deployment.per_replica():
        connection = http.client.HTTPConnection("127.0.0.1", replica.serving.http_port, timeout=20)
        connection.request("GET", "/v2/models/preprocessing/ready")
        found.append(connection.getresponse().status == 200)
        connection.close()
    return found


def test_a_pair_moves_to_the_llm_api_and_no_request_fails(engines):
    twin = engines.file.with_name("twin.yaml")
    twin.write_text(yaml.safe_dump({**yaml.safe_load(engines.file.read_text()), "engine": "pytorch"}))
    assert have_engines(engines) == [True, True]
    with load(engines, CLIENTS) as answers:
        eventually(lambda: sum(answers.values()) > 2 * CLIENTS, 60)
        moved = commands.toolkit("migrate", engines.file, "--apply", "--with", twin)
        assert moved.returncode == 0, moved.stderr
        assert moved.stdout.startswith("moved: not worse by more than 10 %: TTFT P50 -"), moved.stdout
        assert f"to go back: toolkit restart {engines.file} --rolling --with {engines.file}" in moved.stderr
        events = [event["event"] for event in engines.events() if event["part"] == "migration"]
        assert events == ["trial", "moving", "moved"]
        assert have_engines(engines) == [False, False]
        client = openai.OpenAI(base_url=f"{engines.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.BadRequestError, match="sampling_param_seed"):
            client.completions.create(model="llama", prompt="Shall I", max_tokens=2, temperature=1, seed=7)
        kept = engines.file.with_name("kept.jsonl")
        eventually(lambda: '"refused":true' in kept.read_text(), 60)
        again = commands.toolkit("migrate", engines.file, "--apply", "--with", twin)
        assert again.returncode == 1 and "engine: is pytorch, as that of the deployment that is up" in again.stderr
    engines.wait_ready()
    assert len(answers) == 1, answers
