"""curl on generate and generate_stream, with bodies as people write them."""

import json
import subprocess

import pytest

from .group import events_of, text_of
from .marks import both_models, one_rank

pytestmark = [pytest.mark.slow, one_rank]


def curl(url: str, body: str, *options: str) -> tuple[str, str, str]:
    """(status, content type, body)."""
    shown = "\n%{http_code}\n%{content_type}"
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--write-out", shown, *options, "--data", body, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    text, status, content_type = done.stdout.rsplit("\n", 2)
    return status, content_type, text


@both_models
@pytest.mark.parametrize(
    "body",
    [
        '{"text_input": "A tiny baker", "max_tokens": 10, "bad_words": "", "stop_words": ""}',
        '{"text_input": "A tiny baker", "parameters": {"max_tokens": 10, "bad_words": [""], "stop_words": [""]}}',
        '{"text_input": "A tiny baker", "parameters": {"max_tokens": 10, "top_k": 1}, "stream": false}',
    ],
    ids=["top level", "parameters", "both"],
)
def test_generate(group, truth, model, body):
    status, content_type, text = curl(group.url(model), body, "--request", "POST")
    assert (status, content_type) == ("200", "application/json")
    expected = truth.text(truth.greedy(truth.ids("A tiny baker"), 10))
    answer = json.loads(text)
    assert answer["text_output"] == expected and answer["model_name"] == model


@both_models
@pytest.mark.parametrize("nested", [False, True], ids=["top level", "parameters"])
def test_generate_stream_with_an_id(group, truth, model, nested):
    asked = {"max_tokens": 10, "stream": True, "top_k": 1}
    body = {"text_input": "A tiny baker", "id": "42", **({"parameters": asked} if nested else asked)}
    status, content_type, text = curl(group.url(model, stream=True), json.dumps(body))
    assert status == "200" and content_type.startswith("text/event-stream")
    events = events_of(text)
    assert text_of(events) == truth.text(truth.greedy(truth.ids("A tiny baker"), 10))
    assert text.count('"text_output"') == 10
    assert all(event["id"] == "42" for event in events)


def test_version_in_the_url(group):
    url = group.url("tensorrt_llm_bls").replace("/generate", "/versions/1/generate")
    assert curl(url, '{"text_input": "Tyger", "max_tokens": 2}')[0] == "200"


def test_token_ids(group, truth):
    ids = truth.ids("Tyger Tyger")
    body = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": 8}
    status, _, text = curl(group.url("tensorrt_llm"), json.dumps(body))
    assert status == "200"
    assert json.loads(text)["output_ids"] == truth.greedy(ids, 8, ends=())


def test_only_post(group):
    status, _, text = curl(group.url("ensemble"), "", "--request", "GET")
    assert status == "405" and json.loads(text) == {"error": "Method Not Allowed"}
