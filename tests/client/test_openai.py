"""OpenAI's API: what is asked, what its chunks say and do not say, and its own ways to fail."""

from __future__ import annotations

import pytest

from tests.load.measure import measure, measure_whole
from toolkit.client import GenerateRequest, ServerFailed, ServerRefused, connect
from toolkit.errors import InputRefused, ToolkitError
from toolkit.load.exchange import ASKED_OF_THE_SERVER, now

from .probe import RunningProbe

COMPLETIONS = "/v1/completions"


@pytest.fixture
def protocol() -> str:
    return "openai"


def ask(client, prompt: str, tokens: int = 4, **sampling):
    return list(client.generate_stream(GenerateRequest(prompt, tokens, model="llama", sampling=sampling)))


def seen_of(probe: RunningProbe, prompt: str) -> dict:
    return next(seen for seen in reversed(probe.log()) if seen["prompt"] == prompt)["inputs"]


def test_a_chat_is_its_texts_and_why_it_ended(client):
    """Neither the role at the beginning nor [DONE] is an event."""
    events = ask(client, "hello")
    assert [event.text for event in events] == [" é0", " é1", " é2", " é3", ""]
    assert [event.outputs for event in events] == [{}] * 4 + [{"finish_reason": "length"}]


def test_usage_is_told_where_it_is_asked_for(client):
    *texts, finish, usage = ask(client, "hello there you", return_num_output_tokens=True)
    assert len(texts) == 4 and finish.outputs == {"finish_reason": "length"}
    assert usage.outputs == {"num_output_tokens": 0, "total_output_tokens": 4, "num_input_tokens": 3}


def test_usage_in_every_chunk_counts_each(client):
    events = ask(client, "counted")
    assert [event.outputs.get("num_output_tokens") for event in events] == [3, 3, 3, 3, None, 0]
    assert [event.outputs.get("total_output_tokens") for event in events] == [3, 6, 9, 12, None, 12]


def test_thoughts_are_text_and_marked(client):
    events = ask(client, "thinking", 3)
    assert [event.text for event in events] == [" é0", " é1", " é2", ""]
    assert [event.outputs.get("reasoning", False) for event in events] == [True, True, False, False]
    whole = client.generate(GenerateRequest("thinking", 1))
    assert whole.text == " hm é0" and whole.outputs["reasoning"]


def test_a_whole_answer_has_its_counts(client):
    whole = client.generate(GenerateRequest("hello you", 3))
    assert whole.outputs == {
        "finish_reason": "length", "num_output_tokens": 3, "total_output_tokens": 3, "num_input_tokens": 2
    }  # fmt: skip


def test_completions_by_the_path(probe):
    with connect(probe.url("openai") + COMPLETIONS) as client:
        assert client.ready()
        assert [event.text for event in ask(client, "plain")] == [" é0", " é1", " é2", " é3", ""]
        assert client.generate(GenerateRequest("plain", 2)).text == " é0 é1"
        with pytest.raises(ServerFailed, match="expected text"):
            ask(client, "textless")


def test_a_base_without_an_endpoint_is_for_chat(probe):
    with connect(probe.url("openai") + "/v1/") as client:
        assert client.ready()
        assert [event.text for event in ask(client, "base", 1)] == [" é0", ""]


def test_inputs_are_sent_by_openais_names(client, probe):
    sampling = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7, "min_tokens": 2, "end_id": -1,
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2, "stop_words": ("a", "b"),
        "return_perf_metrics": True, "return_num_input_tokens": True,
    }  # fmt: skip
    ask(client, "names", 2, **sampling)
    assert seen_of(probe, "names") == {
        "model": "llama", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7, "min_tokens": 2, "ignore_eos": True,
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2, "stop": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize("sampling", [{"bad_words": ["x"]}, {"end_id": 2}, {"return_log_probs": True}, {"stop": True}])
def test_inputs_that_openai_has_no_name_for_are_refused_before_sending(client, probe, sampling):
    (name,) = sampling
    with pytest.raises(InputRefused, match=f"input {name}: .*no such input. It takes .*temperature"):
        ask(client, f"unsent {name}", **sampling)
    assert f"unsent {name}" not in [seen["prompt"] for seen in probe.log()]


@pytest.mark.parametrize(
    ("scenario", "kind", "words"),
    [
        ("early", ServerRefused, "the prompt is too long"),
        ("vllm", ServerFailed, "Executor failed process requestId 7"),
        ("dies", ServerFailed, "broke off"),
        ("unended", ServerFailed, "ended before the answer, without a finish_reason"),
        ("aborted", ServerFailed, "did not finish the answer: finish_reason 'abort'"),
        ("overrun", ServerFailed, "' more' after the end of the answer"),
        ("afterwards", ServerFailed, "more.* after the end of the stream"),
        ("shrinking", ServerFailed, "1 tokens fewer"),
        ("two", ServerFailed, "expected one choice"),
        ("echo", ServerRefused, "Incorrect API key provided: bearer .secret."),
    ],
)
def test_what_is_not_a_whole_answer(probe, monkeypatch, scenario, kind, words):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine")
    with connect(probe.url("openai")) as client, pytest.raises(kind, match=words) as caught:
        ask(client, scenario)
    assert "key-of-mine" not in str(caught.value)


def test_a_finished_answer_needs_no_done(client):
    assert [event.text for event in ask(client, "undone")] == [" é0", " é1", ""]


def test_an_empty_answer_is_one(client):
    assert [event.outputs for event in ask(client, "empty")] == [{"finish_reason": "length"}]


def test_a_whole_answer_that_was_aborted(client):
    with pytest.raises(ServerFailed, match="finish_reason 'abort'"):
        client.generate(GenerateRequest("aborted", 1))


def test_the_key_is_sent_and_never_shown(probe, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " key-of-mine\n")
    with connect(probe.url("openai")) as client:
        ask(client, "with key")
        assert "key-of-mine" not in repr(client)
    assert seen_of(probe, "with key")["authorization"] == "bearer key-of-mine"
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(ToolkitError, match="variable OPENAI_API_KEY: holds") as caught:
        connect(probe.url("openai"))
    assert "two" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with connect(probe.url("openai")) as client, pytest.raises(ServerRefused, match="Invalid API key"):
        client.wait_ready(5)
    monkeypatch.delenv("OPENAI_API_KEY")
    with connect(probe.url("openai")) as client:
        ask(client, "without key")
    assert "authorization" not in seen_of(probe, "without key")


@pytest.mark.parametrize(
    ("prompt", "tokens", "groups"),
    [
        ("hello", 4, [1, 1, 1, 1]),
        ("stop", 9, [1, 1, 1, 1]),  # the token that ends the answer is counted and has no text
        ("several", 4, [3, 3, 3, 3]),
        ("counted", 4, [3, 3, 3, 3]),
    ],
)
def test_the_servers_count_is_shared_by_its_events(client, prompt, tokens, groups):
    asked = GenerateRequest(prompt, tokens, sampling=ASKED_OF_THE_SERVER)
    sample = measure(client, asked, due=now(), protocol="openai", deadline_s=5)
    times = sorted(set(sample.token_times))
    assert [sample.token_times.count(time) for time in times] == groups
    assert sample.counted_by == "server" and sample.tokens_in == 1
    too_many = "the server counts 12 tokens, but max_tokens is 4"
    assert sample.error == (too_many if sum(groups) == 12 else None)


def test_an_answer_that_is_not_streamed_has_no_first_token(client):
    due = now()
    sample = measure_whole(client, GenerateRequest("hello", 5), due=due, protocol="openai", deadline_s=5)
    assert sample.ok and not sample.streamed
    assert (sample.tokens_out, sample.tokens_in) == (5, 1)
    assert sample.ttft_ms is None and sample.tpot_ms is None and sample.itl_ms == []
    assert 40 <= sample.e2e_ms == (sample.ended - due) * 1e3
