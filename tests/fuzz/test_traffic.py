"""Workload files, prompts and public traces with anything in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.workload.conftest import small
from toolkit.workload.file import load_workload
from toolkit.workload.load_plan import load_plan
from toolkit.workload.prompts import load_prompts
from toolkit.workload.trace import has_times, read_trace
from toolkit.workload.trace_forms import COLUMNS, LINES, form_of

from .fuzzing import JSON_PIECES, changed, checked, damaged, examples, strange

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
WORKLOADS = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "loadtest/workloads").glob("*.yaml"))]
WORKLOADS += [
    {"ramp": {"from": 1, "to": 4, "seconds": 3}, "prompt_tokens": {"mean": 30, "cv": 0.5}, "output_tokens": 8},
    {"spike": {"base": 1, "peak": 4, "at": 3, "seconds": 4}, "arrivals": "gamma", "burstiness": 0.5},
    {"prompts": "own.jsonl", "rate": 3, "requests": 8},
    {"trace": "trace.jsonl", "requests": 3, "trace_block_tokens": 16},
]
LINE = {"timestamp": 1000, "input_length": 40, "output_length": 5, "hash_ids": [1]}
BAILIAN = {**LINE, "chat_id": 1, "parent_chat_id": -1, "turn": 1, "type": "text"}
TALK = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}
TRACES = [
    "".join(json.dumps({**line, "timestamp": 1000 * n}) + "\n" for n in range(4)) for line in (LINE, BAILIAN, TALK)
]
TRACES.append(json.dumps([TALK] * 3))
TRACES.append("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Log\n" * 2)
TRACES.append("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n")
PIECES = [
    *JSON_PIECES,
    b"1e308",
    b"-1e308",
    b"inf",
    b"nan",
    b"9999-12-31 23:59:59",
    b"\n",
    b"\r",
    b"\xef\xbb\xbf",
    b"\0",
]
PIECES += [b"," * 100_000, b'"' + b"a" * 140_000, b'{"a":' * 2000, b"9" * 400]
FORMS = [None, *LINES, *COLUMNS, "sharegpt"]


@examples(40)
@given(st.sampled_from(WORKLOADS).flatmap(changed))
def test_workload_files(tmp_path, tiny_llama, content):
    """What is taken is planned as well, where that is not a day's work."""
    (tmp_path / "own.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "trace.jsonl").write_text(TRACES[0])
    file = tmp_path / "w.yaml"
    file.write_bytes(yaml.safe_dump(content).encode("utf-8", "surrogatepass"))

    def use() -> None:
        workload = load_workload(file)
        if workload.requests <= 2000 and not any((workload.stages, workload.ramp, workload.spike)):
            load_plan(workload, small(tiny_llama), file)

    checked(use, tmp_path)


@examples(60)
@given(st.sampled_from(TRACES).flatmap(lambda text: damaged(text.encode(), PIECES)), st.sampled_from(FORMS))
def test_traces(tmp_path, content, form):
    file = tmp_path / "trace.jsonl"
    file.write_bytes(content)

    def use() -> None:
        if has_times(form or form_of(file)):
            lines = read_trace(file, form=form).lines
            assert all(0 <= line.due < float("inf") for line in lines)

    checked(use, tmp_path)


@examples(40)
@given(st.lists(changed(LINE), min_size=1, max_size=4), st.sampled_from(list(LINES)))
def test_lines_of_a_trace(tmp_path, lines, form):
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [LINE, *lines]))

    def use() -> None:
        trace = read_trace(file, form=form)
        assert all(0 <= line.due < float("inf") for line in trace.lines)

    checked(use, tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
@examples(20)
@given(content=damaged(b'{"prompt": "a"}\n{"prompt": "b c"}\n', PIECES))
def test_prompts(tmp_path, suffix, content):
    file = tmp_path / f"prompts{suffix}"
    file.write_bytes(content)

    def use() -> None:
        for prompt in load_prompts(file):
            assert prompt.encode("utf-8").strip()

    checked(use, tmp_path)


@examples(30)
@given(st.lists(strange, min_size=1, max_size=3))
def test_prompts_of_any_form(tmp_path, prompts):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    checked(lambda: [prompt.encode("utf-8") for prompt in load_prompts(file)], tmp_path)
