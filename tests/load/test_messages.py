"""What is on the wire for a server with OpenAI's API: messages for chat, of every kind of workload; the prompt as it
is for completions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import toolkit
from tests.recording import recording_server
from toolkit.client import connect
from toolkit.load.requests import request_source
from toolkit.load.target import takes_messages

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def server():
    with recording_server() as running:
        yield running


@pytest.fixture
def model(tiny_llama, tmp_path) -> Path:
    """The small model with a template of which one sees whether, and how often, it was applied."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path / "model"


@pytest.fixture
def sent(server, deployment, model, tmp_path):
    """Send the first conversations of a workload as a user does; what came, in order."""

    def send(path: str = "", conversations: int = 1, lines: list[object] | None = None, **keys: object) -> list[dict]:
        del server.asked[:]
        file = None
        if keys or lines:
            if lines:
                keys["prompts"] = "lines.jsonl"
                (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
            (tmp_path / "w.yaml").write_text(json.dumps(keys))
            file = str(tmp_path / "w.yaml")
        load = deployment(None, model=model)
        work = request_source(load, file, as_messages=takes_messages(server.url + path))
        with connect(server.url + path) as client:
            for number in list(work.firsts)[:conversations]:
                following = work.request(number)
                while following is not None:
                    text = "".join(event.text for event in client.generate_stream(following.request))
                    following = work.after(following, text)
        return [body for _, body in server.asked]

    return send


def roles(body: dict) -> list[str]:
    return [message["role"] for message in body["messages"]]


def test_the_yamls_own_load_test(sent):
    (chat,), (plain,) = sent(), sent(COMPLETIONS)
    question = "What is the capital of France?"
    assert chat["messages"] == [{"role": "user", "content": question}] and "prompt" not in chat
    assert plain["prompt"] == f"<user>{question}<assistant>" and "messages" not in plain


def test_questions(sent):
    (chat,), (plain,) = sent(kind="chat", requests=3), sent(COMPLETIONS, kind="chat", requests=3)
    assert roles(chat) == ["user"] and "<" not in chat["messages"][0]["content"]
    assert plain["prompt"] == f"<user>{chat['messages'][0]['content']}<assistant>"


@pytest.mark.parametrize("kind", ["chat", "synthetic"])
def test_conversations_are_turns(sent, kind):
    keys = {"kind": kind, "turns": 3, "requests": 3, "output_tokens": 5}
    keys |= {"prompt_tokens": 20} if kind == "synthetic" else {}
    bodies = sent(**keys)
    assert [roles(body) for body in bodies] == [
        ["user"],
        ["user", "assistant"] * 1 + ["user"],
        ["user", "assistant"] * 2 + ["user"],
    ]
    said = bodies[-1]["messages"]
    assert [message["content"] for message in said if message["role"] == "assistant"] == ["yes", "yes"]
    assert said[:1] == bodies[0]["messages"] and said[:3] == bodies[1]["messages"]
    assert not any(
        message["content"] != message["content"].strip() or "<" in message["content"] for message in said[1:]
    )


def test_synthetic_prompts_are_the_same_text_for_both(sent):
    (chat,), (plain,) = sent(prompt_tokens=30, requests=1), sent(COMPLETIONS, prompt_tokens=30, requests=1)
    assert chat["messages"] == [{"role": "user", "content": plain["prompt"]}]


def test_prompts_and_messages_of_a_file(sent):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    lines = [{"messages": messages}, {"prompt": "as it is"}]
    first, second = sent(conversations=2, lines=lines)
    assert first["messages"] == messages
    assert second["messages"] == [{"role": "user", "content": "as it is"}]
    first, second = sent(COMPLETIONS, conversations=2, lines=lines)
    assert first["prompt"] == "<system>Be brief.<user>Hi<assistant>Hello<user>Bye<assistant>"
    assert second["prompt"] == "as it is"


def test_messages_need_no_template_here_where_the_server_has_it(sent, model):
    (model / "chat_template.jinja").unlink()
    (chat,) = sent(lines=[{"messages": [{"role": "user", "content": "Hi"}]}])
    assert chat["messages"] == [{"role": "user", "content": "Hi"}]


def test_a_trace(sent, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 20, "output_length": 3}')
    (chat,), (plain,) = (sent(path, kind="trace", trace="t.jsonl") for path in ("", COMPLETIONS))
    assert chat["messages"] == [{"role": "user", "content": plain["prompt"]}] and chat["max_tokens"] == 3


def test_recorded_conversations(sent, tmp_path):
    turns = [("system", "Be brief."), ("human", "Why?"), ("gpt", "So."), ("human", "Who?"), ("gpt", "I.")]
    conversation = {"conversations": [{"from": name, "value": text} for name, text in turns]}
    (tmp_path / "s.json").write_text(json.dumps([conversation]))
    _, chat = sent(trace="s.json", conversations=2)
    _, plain = sent(COMPLETIONS, trace="s.json", conversations=2)
    assert roles(chat) == ["system", "user", "assistant", "user"] and chat["messages"][-1]["content"] == "Who?"
    assert plain["prompt"] == "<system>Be brief.<user>Why?<assistant>So.<user>Who?<assistant>"


def test_ask(server, deployment, model):
    config = deployment(None, model=model).file
    asked = [str(config), "Who?", "--target"]
    for arguments in (
        [*asked, server.url, "--model", "m"],
        [*asked, server.url, "--system", "Be brief."],
        [*asked, server.url + COMPLETIONS, "--system", "Be brief."],
        [*asked, server.url + COMPLETIONS, "--raw"],
    ):
        assert toolkit("ask", *arguments).stdout == "yes\n"
    plain, system, rendered, raw = (body for _, body in server.asked[-4:])
    assert plain["messages"] == [{"role": "user", "content": "Who?"}] and plain["model"] == "m"
    assert system["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert rendered["prompt"] == "<system>Be brief.<user>Who?<assistant>"
    assert raw["prompt"] == "Who?"
    for refused, words in (
        (["--raw"], "this server always applies its chat template"),
        (["--grpc"], "--grpc contradicts"),
    ):
        done = toolkit("ask", *asked, server.url, *refused)
        assert done.returncode and words in done.stderr
