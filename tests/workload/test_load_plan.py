"""What a load test sends: conversations, the user's own prompts, traces; and the files that we ship."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.workload.conftest import FLAGSHIP
from toolkit.client import GenerateRequest
from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.workload import traffic_of
from toolkit.workload.file import load_workload, workload_of
from toolkit.workload.load_plan import load_plan

WORKLOADS = sorted((Path(__file__).parents[2] / "loadtest/workloads").glob("*.yaml"))


@pytest.fixture
def flagship(tiny_llama):
    """Its limits, with a tokenizer that is here."""
    return with_settings(load_deployment(FLAGSHIP), model={"path": tiny_llama})


@pytest.mark.parametrize("file", WORKLOADS, ids=lambda file: file.stem)
def test_every_shipped_workload_can_be_sent_to_the_flagship(file, flagship):
    found = load_plan(load_workload(file), flagship, file)
    assert found.count > 200 and found.dues[-1] <= found.duration_s * (1 + 1e-9)
    for number in (found.firsts[0], found.firsts[-1]):
        sent = found[number]
        GenerateRequest(sent.prompt, sent.max_tokens, sampling=sent.sampling)
    assert file.read_text().startswith("# "), "says what it is for"


def test_there_are_workloads():
    assert len(WORKLOADS) == 10


def test_the_planner_sees_what_is_sent(deployment, flagship):
    """Without a file, a load test sends the traffic that `toolkit plan` predicts under."""
    keys = {"prompt_tokens": {"min": 100, "max": 200}, "shared_prefix_tokens": 50, "requests": 30, "rate": 3}
    stated = deployment(**keys)
    found = load_plan(workload_of(stated), with_settings(stated, model={"path": flagship.model.path}))
    assert found.traffic() == traffic_of(stated)
    assert [found[n].prompt_tokens for n in range(30)] == [len(r.prompt) for r in traffic_of(stated).requests]


@pytest.mark.parametrize("output", ["fixed", "natural"])
def test_how_answers_end(plan, output):
    sent = plan(output=output, output_tokens=7, prompt_tokens=10, requests=1)[0]
    assert sent.max_tokens == 7
    assert sent.sampling == ({"min_tokens": 7, "end_id": -1} if output == "fixed" else {})


def test_a_closed_loop(plan):
    found = plan(arrivals="closed", users=5, requests=9, prompt_tokens=10)
    assert (found.users, found.rate, found.duration_s, found[3].due) == (5, None, None, None)
    assert len(found.first(4)) == 4 and len(found.traffic().requests) == 9


def test_a_conversation_holds_what_was_said(plan):
    found = plan(turns=3, prompt_tokens=20, output_tokens=5, requests=7, think_s=1.5)
    assert list(found.firsts) == [request.number for request in found] == [0, 3, 6] and found.workload.think_s == 1.5
    first = found[3]
    assert (first.conversation, first.turn, first.number) == (1, 0, 3) and first.due > 0
    second = found.next_turn(first, " and so on")
    assert second.prompt.startswith(first.prompt + " and so on ") and second.due is None
    assert (second.conversation, second.turn, second.number) == (1, 1, 4)
    third = found.next_turn(second, " yes")
    assert third.prompt.startswith(second.prompt + " yes ") and third.prompt_tokens > second.prompt_tokens + 20
    assert found.next_turn(third, "") is None
    assert found.next_turn(found[6], "") is None, "7 requests end after the first turn of the third conversation"
    assert found.traffic() is None
    with pytest.raises(IndexError, match="request 4 is not one of"):
        found[4]


def test_a_chat_in_the_models_template(plan, tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    found = plan(kind="chat", turns=2, requests=48, output_tokens=9)
    first = found[0]
    second = found.next_turn(first, "An answer.")
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]
    expected = tokenizer.apply_chat_template(list(second.messages), add_generation_prompt=True, tokenize=False)
    assert second.prompt == expected
    assert second.prompt_tokens == len(tokenizer(second.prompt, add_special_tokens=False)["input_ids"])
    assert first.sampling == {}
    assert len({found[number].prompt for number in found.firsts}) == 12


def test_prompts_of_the_users_own(plan, tmp_path):
    lines = [
        {"prompt": "Say yes.", "max_tokens": 3},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
    ]
    (tmp_path / "own.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    found = plan(prompts="own.jsonl", output_tokens=50)
    assert found.workload.kind == "jsonl" and len(found) == 2
    assert (found[0].prompt, found[0].max_tokens, found[0].messages) == ("Say yes.", 3, None)
    assert "Be brief." in found[1].prompt and found[1].max_tokens == 50 and found[1].messages[1]["content"] == "Hello"
    again = plan(prompts="own.jsonl", requests=5)
    assert [again[n].prompt for n in range(5)] == [again[n % 2].prompt for n in range(5)]


@pytest.mark.parametrize(("form", "second"), [("mooncake", 1.0), ("guidellm", 1000.0)])
def test_a_trace_in_two_forms(plan, tmp_path, form, second):
    """The keys are the same; Mooncake's timestamps are milliseconds, guidellm's are seconds."""
    lines = [{"timestamp": 5000 + 1000 * n, "input_length": 30, "output_length": 4} for n in range(5)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = plan(arrivals="trace", trace="t.jsonl", trace_form=form)
    assert list(found.dues) == [n * second for n in range(5)] and found.workload.kind == "trace"
    assert found.rate == 1 / second and found[2].prompt_tokens == 30
    faster = plan(kind="trace", trace="t.jsonl", trace_form=form, rate=10)
    assert list(faster.dues) == pytest.approx([n / 10 for n in range(5)])
