"""Real ranks on two nodes, without Triton: network namespaces with an address each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.up.namespaces import Network, address, missing
from toolkit.engine.settings import EngineSettings

MISSING = missing(())
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
LEADER = """
import json, queue, sys, psutil
from toolkit.engine.rehearsal.engine import RehearsalEngine
from toolkit.engine.request import GenerationRequest
from toolkit.engine.settings import EngineSettings
engine = RehearsalEngine(EngineSettings.model_validate_json(sys.argv[1]), int(sys.argv[2]))
events = queue.SimpleQueue()
engine.submit([GenerationRequest(input_ids=[1, 2, 3, 4, 5], request_output_len=24)], events.put)
tokens = []
while not (event := events.get()).finished:
    tokens.append(event.token)
listening = [c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
print(json.dumps({"tokens": tokens, "listening": listening}), flush=True)
engine.close()
"""
WORKER = """
import sys
from toolkit.engine.rehearsal.worker import work
from toolkit.engine.settings import EngineSettings
work(EngineSettings.model_validate_json(sys.argv[1]), 1, int(sys.argv[2]))
"""


def answer(settings: EngineSettings, commands: list[list[str]]) -> dict[str, Any]:
    """What rank 0 prints; `commands` come before the Python of each rank."""
    arguments = [settings.model_dump_json(), str(free_port())]
    programs = [[*command, sys.executable, "-c"] for command in commands]
    leader = subprocess.Popen([*programs[0], LEADER, *arguments], stdout=subprocess.PIPE, text=True)
    worker = subprocess.Popen([*programs[1], WORKER, *arguments])
    try:
        printed, _ = leader.communicate(timeout=240)
        assert leader.returncode == worker.wait(240) == 0
        return dict(json.loads(printed))
    finally:
        leader.kill()
        worker.kill()


def test_two_stages_on_two_nodes_answer_as_on_one(tiny_llama: Path, deploy: Any) -> None:
    limits = {"max_sequences": 4, "max_num_tokens": 64, "max_seq_len": 128}
    settings = EngineSettings(gpt_model_path=deploy(tiny_llama, pp=2, limits=limits).engine_dir)
    here = answer(settings, [[], []])
    assert len(here["tokens"]) > 10 and {*here["listening"]} == {"127.0.0.1"}
    with Network(2) as network:
        leader = f"TOOLKIT_REHEARSAL_LEADER={address(1)}"
        nodes = [
            ["ip", "netns", "exec", network.name(node), "env", leader, f"TOOLKIT_REHEARSAL_ADDRESS={address(node)}"]
            for node in (1, 2)
        ]
        there = answer(settings, nodes)
    assert there["tokens"] == here["tokens"]
    assert {*there["listening"]} == {address(1)}, "nothing listens on other addresses"
