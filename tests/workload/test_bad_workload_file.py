"""Every mistake in a workload file, or in a file that it names, is one line that says what to do."""

import json
import re

import pytest

from tests.workload.conftest import small
from toolkit.errors import ToolkitError
from toolkit.workload.file import load_workload
from toolkit.workload.load_plan import load_plan

RAMP = {"from": 1, "to": 2, "seconds": 3}
SPIKE = {"base": 1, "peak": 2, "at": 3, "seconds": 4}
KEYS = [
    ({"rates": 5}, "w.yaml: rates: unknown key. Known here: arrivals, burstiness, kind, output, output_tokens,"),
    ({"ramp": {**RAMP, "start": 1}}, "ramp.start: unknown key. Known here: from, seconds, to."),
    ({"stages": [{"rate": 1, "second": 3}]}, "stages.0.seconds: missing"),
    ({"stages": [{"rate": 1, "seconds": 3, "x": 1}]}, "stages.0.x: unknown key. Known here: rate, seconds."),
    ({"stages": []}, "w.yaml: stages: is empty. Give {rate, seconds} for each"),
    ({"stages": 5}, "stages: "),
    ({"ramp": {"from": 1}}, "ramp.to: missing"),
    ({"ramp": {"from": -1, "to": 2, "seconds": 3}}, "ramp.from: input should be greater than or equal to 0, got -1"),
    ({"spike": {**SPIKE, "peak": 0}}, "spike.peak: input should be greater than 0, got 0"),
    ({"kind": "random"}, "kind: input should be 'synthetic', 'chat', 'jsonl' or 'trace', got 'random'"),
    ({"output": "eos"}, "output: input should be 'fixed' or 'natural', got 'eos'"),
    ({"turns": 0}, "turns: input should be greater than 0, got 0"),
    ({"prompt_tokens": "many"}, "prompt_tokens: expected a whole number of tokens above 0, or {min, max}"),
    ({"prompt_tokens": {"min": 5, "max": 2}}, "w.yaml: prompt_tokens: max 2 is less than min 5. Exchange them."),
    ({"rate": 1e-9}, "w.yaml: rate: 1e-09 is too small. Use at least 1e-06."),
    ({"requests": 10**8}, "requests: 100000000 is more than 10,000,000."),
    ({"stages": [{"rate": 1, "seconds": 3}], "ramp": RAMP}, "ramp: cannot be combined with stages. Keep one of them;"),
    ({"ramp": RAMP, "rate": 3}, "rate: cannot be combined with ramp, which sets it."),
    ({"spike": SPIKE, "requests": 3}, "requests: cannot be combined with spike, which sets it."),
    ({"ramp": RAMP, "arrivals": "closed"}, "ramp: has no effect with arrivals: closed."),
    ({"kind": "trace"}, "trace: missing, and arrivals is trace. Give the file to replay."),
    ({"kind": "trace", "arrivals": "poisson"}, "trace: missing, and kind is trace. Give the file to replay."),
    ({"kind": "chat", "arrivals": "trace", "trace": "t"}, "kind: chat with arrivals: trace."),
    (
        {"kind": "synthetic", "trace": "t"},
        "trace: has no effect with kind: synthetic. Remove it; it is for kind trace.",
    ),
    ({"trace": "t", "prompts": "p"}, "prompts: has no effect with kind: trace. Remove it; it is for kind jsonl."),
    ({"kind": "jsonl"}, "prompts: missing, and kind is jsonl."),
    ({"kind": "chat", "prompts": "p"}, "prompts: has no effect with kind: chat. Remove it; it is for kind jsonl."),
    ({"kind": "chat", "prompt_tokens": 5}, "prompt_tokens: has no effect with kind: chat."),
    ({"prompts": "p", "turns": 2}, "turns: has no effect with kind: jsonl. Remove it; it is for kind synthetic, chat."),
    ({"users": 8}, "users: has no effect with arrivals: poisson. Remove it, or use arrivals: closed."),
    ({"burstiness": 2, "arrivals": "constant"}, "burstiness: has no effect with arrivals: constant."),
    ({"arrivals": "closed", "rate": 2}, "rate: has no effect with arrivals: closed."),
    ({"think_s": 2}, "think_s: has no effect without turns."),
]


def line_of(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(("keys", "message"), KEYS, ids=lambda value: re.sub(r"\W+", " ", str(value))[:40])
def test_a_mistake_in_the_file(workload_file, tmp_path, keys, message):
    with pytest.raises(ToolkitError) as caught:
        load_workload(workload_file(**keys))
    assert message in line_of(caught)
    assert str(caught.value).startswith(f"{tmp_path}/w.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "w.yaml: is empty, expected a mapping of keys"),
        ("# only a comment\n", "w.yaml: is empty, expected a mapping of keys"),
        ("- 1\n", "expected a mapping of keys, got list"),
        ("rate: [", "is not valid YAML"),
        ("rate: 1\nrate: 2\n", "rate is given twice"),
    ],
)
def test_a_file_that_is_none(workload_file, text, message):
    with pytest.raises(ToolkitError) as caught:
        load_workload(workload_file(text))
    assert message in line_of(caught)


def test_no_file(tmp_path):
    with pytest.raises(ToolkitError, match=r"none.yaml: no such file\. For examples: toolkit sample workloads DIR"):
        load_workload(tmp_path / "none.yaml")


LIMITS = [
    (
        {"prompt_tokens": 500, "output_tokens": 13},
        "500 prompt + 13 output tokens are more than limits.max_seq_len 512.",
    ),
    ({"turns": 4, "prompt_tokens": 100, "output_tokens": 50}, "400 prompt + 200 output tokens are more than"),
    ({"kind": "chat", "output_tokens": 510}, "510 output tokens are more than limits.max_seq_len 512. Raise the limit"),
    (
        {"stages": [{"rate": 1e6, "seconds": 1e6}]},
        "make 1,000,000,000,000 requests in 1e+06 s",
    ),
    ({"stages": [{"rate": 0.1, "seconds": 0.1}]}, "no request is due in its 0.1 s: its rates make 0.01 requests"),
]


@pytest.mark.parametrize(("keys", "message"), LIMITS, ids=lambda value: re.sub(r"\W+", " ", str(value))[:40])
def test_what_cannot_be_sent(plan, tmp_path, keys, message):
    with pytest.raises(ToolkitError) as caught:
        plan(max_seq_len=512, **keys)
    assert message in line_of(caught)
    assert str(caught.value).startswith(f"{tmp_path}/w.yaml: ")


OWN = [
    ("", "own.jsonl: holds no prompts. A line is {"),
    ("{", "own.jsonl:1: not JSON."),
    ("[" * 100_000, "own.jsonl:1: not JSON."),
    ('{"prompt": "a"}\n5', "own.jsonl:2: expected an object, got 5."),
    ('{"text": "a"}', "own.jsonl:1: has neither prompt nor messages."),
    ('{"prompt": "a", "messages": []}', "own.jsonl:1: has both prompt and messages."),
    ('{"prompt": " "}', "own.jsonl:1: prompt: expected text, got ' '."),
    ('{"prompt": "\\ud800"}', "own.jsonl:1: prompt: expected text, got"),
    ('{"messages": []}', "messages: expected a list of role (system, user, assistant) and content, got []."),
    ('{"messages": [{"role": "robot", "content": "a"}]}', "messages: expected a list of role"),
    ('{"messages": [{"role": "user", "content": 5}]}', "messages: expected a list of role"),
    ('{"prompt": "a", "max_tokens": 0}', "max_tokens: expected 1 or more, got 0."),
    ('{"prompt": "a", "max_tokens": true}', "max_tokens: expected 1 or more, got True."),
    (
        '{"prompt": "a"}\n\n{"prompt": "b", "max_tokens": 600}',
        "own.jsonl:3: 2 prompt + 600 output tokens",
    ),
]


@pytest.mark.parametrize(("text", "message"), OWN, ids=lambda value: re.sub(r"\W+", " ", str(value))[:40])
def test_a_mistake_in_the_users_prompts(plan, tmp_path, text, message):
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(ToolkitError) as caught:
        plan(max_seq_len=512, prompts="own.jsonl")
    assert message in line_of(caught)
    assert str(caught.value).startswith(f"{tmp_path}/own.jsonl:")


def test_messages_for_a_model_without_a_template(plan, tiny_llama, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    (tmp_path / "own.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    with pytest.raises(
        ToolkitError, match=r"own.jsonl:1: has messages, but the model has no chat template\. Give the text"
    ):
        plan(model=tmp_path, prompts="own.jsonl")


@pytest.mark.parametrize("name", ["own.jsonl", "t.jsonl"])
def test_files_that_are_not_there(plan, name):
    keys = {"prompts": name} if name == "own.jsonl" else {"kind": "trace", "trace": name}
    with pytest.raises(ToolkitError, match=rf"{name}: cannot be read: No such file or directory\. A line is"):
        plan(**keys)


def test_a_file_without_an_end(plan):
    with pytest.raises(ToolkitError, match=r"/dev/zero: not a file\. A line is"):
        plan(prompts="/dev/zero")


def test_a_file_that_does_not_fit_into_memory(plan, tmp_path):
    """Next to nothing of it is on the disk."""
    with (tmp_path / "own.jsonl").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ToolkitError, match=r"own.jsonl: is larger than 2 GiB\. Use a part of it\."):
        plan(prompts="own.jsonl")


def test_a_broken_line_of_a_trace(plan, tmp_path):
    good = {"timestamp": 0, "input_length": 9, "output_length": 9}
    for bad, message in (
        ({**good, "timestamp": "now"}, r"t.jsonl:2: timestamp: expected seconds, got 'now'\."),
        (
            {**good, "input_length": 9000},
            r"t.jsonl:2: 9000 prompt \+ 9 output tokens are more than limits.max_seq_len 8192",
        ),
    ):
        (tmp_path / "t.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
        with pytest.raises(ToolkitError, match=message):
            plan(kind="trace", trace="t.jsonl", trace_form="guidellm")


def test_no_tokenizer(workload_file, tiny_llama, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    with pytest.raises(ToolkitError, match=r"tokenizer.json: no such file\. Make it with: "):
        load_plan(load_workload(workload_file(rate=1)), small(tmp_path))
