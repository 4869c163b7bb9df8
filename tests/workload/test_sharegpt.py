"""ShareGPT's conversations: each question a request with what was said before it, and the answer's length."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.workload.conftest import small
from toolkit.config.deployment import with_settings
from toolkit.errors import ToolkitError
from toolkit.workload import traffic_of
from toolkit.workload.words import Counter

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture
def model(tiny_llama, tmp_path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path / "model"


@pytest.fixture
def count(model):
    return Counter(model / "tokenizer.json")


def talk(*said: object, first: str = "human") -> dict:
    """A conversation of a human and a model in turns."""
    names = ("human", "gpt") if first == "human" else ("gpt", "human")
    return {"id": "x", "conversations": [{"from": names[n % 2], "value": text} for n, text in enumerate(said)]}


@pytest.fixture
def file(tmp_path):
    def write(*conversations: object, text: str | None = None) -> Path:
        (tmp_path / "s.json").write_text(json.dumps(list(conversations)) if text is None else text, encoding="utf-8")
        return tmp_path / "s.json"

    return write


@pytest.fixture
def sent(plan, model, tmp_path):
    """The plan of a load test of that file."""
    return lambda **keys: plan(model=model, trace="s.json", **keys)


def test_blocks_mean_nothing_in_conversations(file, sent):
    file(talk("Why?", "Because it is."))
    with pytest.raises(ToolkitError, match=r"trace_block_tokens: has no effect: a file of the form sharegpt has no"):
        sent(arrivals="constant", trace_block_tokens=16)


def test_questions_are_sent_with_what_was_said_and_answers_count_as_lengths(file, sent, count):
    file(talk("Why?", "Because it is.", "And how?", "So."), talk("Who?", "Nobody at all."))
    found = sent(arrivals="constant", rate=2)
    assert list(found.dues) == [0.5, 1.0, 1.5] and found.notes == ()
    first, second, third = (found[number] for number in range(3))
    assert first.messages == ({"role": "user", "content": "Why?"},)
    assert [(m["role"], m["content"]) for m in second.messages] == [
        ("user", "Why?"), ("assistant", "Because it is."), ("user", "And how?")
    ]  # fmt: skip
    assert second.prompt == "<user>Why?<assistant>Because it is.<user>And how?<assistant>"
    assert third.messages == ({"role": "user", "content": "Who?"},)
    for request, answer in ((first, "Because it is."), (second, "So."), (third, "Nobody at all.")):
        assert request.max_tokens == count.count_answer(answer) == request.sampling["min_tokens"]
        assert request.prompt_tokens == count.count(request.prompt)


@pytest.mark.parametrize("keys", [{}, {"arrivals": "trace"}, {"rate": 4}, {"arrivals": "poisson"}, {"kind": "trace"}])
def test_it_has_no_times_so_it_comes_at_a_rate(file, sent, keys):
    file(*[talk("Why?", "Because.")] * 40)
    found = sent(**keys)
    assert found.workload.arrivals == "poisson" and found.rate == keys.get("rate", 1)
    gaps = [b - a for a, b in zip(found.dues, found.dues[1:], strict=False)]
    assert min(gaps) > 0 and len({round(gap, 9) for gap in gaps}) > 30


def test_or_from_users(file, sent):
    file(talk("Why?", "Because."), talk("Who?", "We."))
    found = sent(arrivals="closed", users=3)
    assert (found.users, found.count, found.dues) == (3, 2, None)


def test_system_messages_and_the_names_of_models(file, sent):
    said = [("system", "Be brief."), ("user", "Why?"), ("chatgpt", "So."), ("human", "Who?"), ("bing", "I.")]
    file({"conversations": [{"from": name, "value": text} for name, text in said]})
    assert [m["role"] for m in sent()[1].messages] == ["system", "user", "assistant", "user"]


def test_what_has_no_answer_is_left_out_and_told(file, sent):
    """A last question, an empty answer, a conversation that begins with the rest of an answer, or has nothing."""
    file(talk("Why?", "So.", "Who?"), talk("Where?", ""), talk("rest", "How?", "Thus.", first="gpt"), talk())
    found = sent()
    assert [found[n].messages[-1]["content"] for n in range(found.count)] == ["Why?", "How?"]
    assert [len(found[n].messages) for n in range(found.count)] == [1, 1]
    assert found.notes == ("questions left out, without an answer: 2",)


def test_a_conversation_is_cut_where_it_is_over_the_limit(file, sent):
    file(talk("Why?", "So.", "Tell me " + "all " * 300, "No.", "Who?", "I."), talk("Who?", "You."))
    found = sent(max_seq_len=200)
    assert [found[n].messages[-1]["content"] for n in range(found.count)] == ["Why?", "Who?"]
    assert found.notes == ("conversations cut at limits.max_seq_len 200: 1",)


def test_a_model_without_a_template_is_told(file, sent, model):
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": None}))
    file(talk("Why?", "So.", "Who?", "I."))
    found = sent()
    assert found[1].prompt == "Why?\n\nSo.\n\nWho?" and "no chat template" in found.notes[0]


def test_only_what_is_asked_for_is_read(file, sent):
    file(text=json.dumps([talk("Why?", "So.", "Who?", "I.")])[:-1] + ", {broken")
    assert sent(requests=2).count == 2
    with pytest.raises(ToolkitError, match=r"s\.json:1:\d+: not JSON"):
        sent(requests=3)


def test_lines_of_json_and_a_list_over_lines(file, sent):
    one, other = json.dumps(talk("Why?", "So.")), json.dumps(talk("Who?", "I."))
    for text in (f"{one}\n{other}\n", f"\ufeff\n[\n{one},\n{other}\n]\n", f"[{one},{other}]"):
        file(text=text)
        assert [sent()[n].messages[0]["content"] for n in range(2)] == ["Why?", "Who?"]


def test_a_plan_counts_what_is_sent(file, model):
    path = file(talk("Why?", "Because it is.", "And how?", "So."), talk("Who?", "Nobody."))
    deployment = with_settings(small(model), workload={"trace": path, "arrivals": "constant", "rate": 2.0})
    traffic = traffic_of(deployment)
    assert [request.due for request in traffic.requests] == [0.5, 1.0, 1.5] and traffic.shares_prefixes
    first, second, third = (list(request.prompt) for request in traffic.requests)
    assert second[: len(first)] == first and third[0] not in second


BAD = [
    ("[]", "s.json:1: expected an object"),
    ("[{}]", "s.json:1: [0].conversations: expected a list, got None."),
    ("[{},\n[]]", "s.json:1: [0].conversations: expected a list"),
    ('[{"conversations": []},\n\n7]', "s.json:3: [1].conversations: expected a list, got 7."),
    ('[{"conversations": []}]', "s.json: holds no requests: no question with an answer. A conversation is {"),
    ('[{"conversations": [5]}]', "s.json:1: [0].conversations[0]: expected from and value, got 5."),
    (json.dumps([talk("a", 5)]), "s.json:1: [0].conversations[1].value: expected text, got 5."),
    (json.dumps([talk("a", "b\ud800")]), "s.json:1: [0].conversations[1].value: expected text, got 'b"),
    ('[{"conversations": [{"from": "robot"}]}]', "s.json:1: [0].conversations[0].from: expected system, human,"),
    ('{"conversations": [{"value": "x"}]}', "s.json:1: conversations[0].from: expected system, human"),
    (json.dumps([talk("a")]), "s.json: holds no requests: questions left out, without an answer: 1."),
    ('[{"conversations": []}', "s.json:1:23: not JSON. A conversation is {"),
    ('[{"conversations": ' + "[" * 100_000, "s.json:1: not JSON."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=lambda value: re.sub(r"\W+", " ", value)[:30])
def test_a_mistake_is_one_line_that_says_where(file, sent, text, message):
    file(text=text)
    with pytest.raises(ToolkitError) as caught:
        sent()
    said = str(caught.value).rpartition("/")[2]
    assert message in said and "\n" not in said and len(said) < 330
