"""One paced replica under `toolkit up` that keeps its traffic, and whose door adapts to an overload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import openai

from tests import commands
from tests.monitor.test_real import pace, value
from tests.ports import free_port
from tests.up.conftest import Up, write_and_build
from tests.waiting import eventually
from toolkit.gateway.door import read_door
from toolkit.load.requests import request_source
from toolkit.reports.loadtest.samples import read_samples
from toolkit.workload.trace import read_trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("busy")
    file = write_and_build(
        folder,
        tiny_llama,
        "busy",
        limits={"max_sequences": 4, "max_num_tokens": 256, "max_seq_len": 512, "max_queue_size": 64},
        monitoring={"exporter_port": free_port(), "prometheus": "off", "traffic": "kept.jsonl"},
        tuning={"admission": "auto"},
        slo={"ttft_ms": {"p99": 1000}},
    )
    running = Up(file)
    pace(running.deployment.repository_dir / "tensorrt_llm/1/model.py")
    running.start()
    yield running
    running.end()


def kept(busy: Up) -> list[dict]:
    file = busy.file.parent / "kept.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_traffic_of_both_apis_is_kept_once_and_equals_what_was_sent(busy, tmp_path):
    """A known trace by Triton's HTTP, past the door, which may refuse; then two of its prompts by OpenAI's API."""
    trace, rows = tmp_path / "known.jsonl", []
    for number in range(12):
        blocks, length = [[1, 2, 10 + number], [3, 20 + number]][number % 2], [140, 80][number % 2]
        rows.append({"timestamp": 100 * number, "input_length": length, "output_length": 3 + number})
        rows[-1] |= {"hash_ids": blocks, "block_tokens": 64}
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = commands.toolkit("loadtest", busy.file, "--workload", trace, "--no-self-check", "--direct")
    assert done.returncode in (0, 1, 2), done.stderr
    eventually(lambda: len(kept(busy)) == 12, 20)
    lines = sorted(read_trace(busy.file.parent / "kept.jsonl").lines, key=lambda line: line.output_length)
    assert [line.input_length for line in lines] == [row["input_length"] for row in rows]
    assert [line.output_length for line in lines] == [row["output_length"] for row in rows]
    assert len({tuple(line.blocks[:4]) for line in lines[::2]}) == 1, "the first 128 tokens, in blocks of 32"
    assert len({tuple(line.blocks[:5]) for line in lines[::2]}) == 6
    assert len({tuple(line.blocks[:2]) for line in lines[1::2]}) == 1
    source = request_source(busy.deployment, str(trace))
    with openai.OpenAI(base_url=f"{busy.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for number in (0, 2):
            prompt = source.request(number).request.prompt
            client.completions.create(model="llama", prompt=prompt, max_tokens=2)
    eventually(lambda: len(kept(busy)) == 14, 20)
    for line in kept(busy):
        assert 0 < line["ttft_ms"] <= line["e2e_ms"] < 60e3 and "failed" not in line
    first, second = kept(busy)[12:]
    assert (first["input_length"], first["output_length"]) == (139, 2), "OpenAI's completions begin without <s>"
    assert first["hash_ids"][:3] == second["hash_ids"][:3] and first["hash_ids"][4] != second["hash_ids"][4]
    assert source.request(0).request.prompt[:20] not in (busy.file.parent / "kept.jsonl").read_text()


def test_an_overload_is_refused_at_the_door_and_all_others_are_served(busy, tmp_path):
    """Four sequences of 12 steps of 0.11 s are 3 requests/s; 12 come."""
    workload = tmp_path / "overload.yaml"
    workload.write_text("{prompt_tokens: 16, output_tokens: 12, rate: 12, requests: 120}")
    done = commands.toolkit("loadtest", busy.file, "--workload", workload, "--no-self-check")
    assert done.returncode in (1, 2), done.stderr
    errors = [sample.error for sample in read_samples(busy.deployment.report_dir) if not sample.ok]
    assert 0 < len(errors) < 120 and set(errors) == {"the door is full"}
    door = read_door(busy.deployment)
    assert door and door.admission and door.admission.refused >= len(errors) > 0
    assert door.admission.rises + door.admission.falls > 0
    changes = [one for one in busy.events() if one["part"] == "admission" and one["event"] == "limit"]
    assert changes and all(one["cause"] and one["limit"] for one in changes)
    said = commands.toolkit("status", busy.file).stdout
    assert f"lets in {door.admission.limit} requests (1 to 68)" in said
    eventually(lambda: (value(busy, "toolkit_admission_refused_total") or 0) >= len(errors), 20)
    assert 1 <= (value(busy, "toolkit_admission_limit_requests") or 0) <= 68
