"""Reads requests that come over HTTP, and chooses the form of each answer."""

from __future__ import annotations

import json
import re
from typing import Any

from toolkit.errors import InputRefused, shown
from toolkit.known_truth.answer import ReceivedRequest
from toolkit.known_truth.give import Form
from toolkit.known_truth.openai_form import OpenAiForm
from toolkit.known_truth.settings import Settings
from toolkit.known_truth.triton_form import TritonForm

MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
GENERATE = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?/(generate|generate_stream)")
OPENAI = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
OPENAI_TOKENS = 16
"""OpenAI's default of max_tokens."""
LARGEST_ANSWER = 10**6


class NoSuchModel(InputRefused):
    """The request names a model that this server does not have."""

    pass


def read_request(path: str, body: bytes, settings: Settings) -> tuple[ReceivedRequest, Form] | None:
    """The request and the form of its answer. None for a path that takes no requests.

    Raises InputRefused for a request that no server would take.
    """
    if generate := GENERATE.fullmatch(path):
        return _triton(generate[1], generate[2], _object(body), settings)
    if path in OPENAI:
        return _openai(OPENAI[path], _object(body), settings)
    return None


def known_model(model: str) -> str:
    """Return the model's name. Raises NoSuchModel for any other name."""
    if model not in MODELS:
        raise NoSuchModel(f"Request for unknown model: '{model}' is not found")
    return model


def _triton(model: str, verb: str, body: dict[str, Any], settings: Settings) -> tuple[ReceivedRequest, Form]:
    known_model(model)
    if isinstance(body.get("parameters"), dict):  # Triton takes inputs from there too
        body = {**body["parameters"], **body}
    prompt = body.get("text_input")
    if not isinstance(prompt, str):
        raise InputRefused("expected a text", where="text_input")
    tokens = answer_length(body, body.get("max_tokens"), settings)
    streams = verb == "generate_stream" and body.get("stream") is True
    request = ReceivedRequest("http", verb, str(body.get("id", "")), prompt, tokens, streams)
    return request, TritonForm(model, request, body, streamed=verb == "generate_stream")


def _openai(target: str, body: dict[str, Any], settings: Settings) -> tuple[ReceivedRequest, Form]:
    maximum = body.get("max_completion_tokens", body.get("max_tokens"))
    tokens = answer_length(body, settings.tokens or OPENAI_TOKENS if maximum is None else maximum, settings)
    prompt = _chat(body.get("messages")) if target == "chat" else body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        prompt = " ".join(map(str, prompt))
    if not isinstance(prompt, str):
        raise InputRefused("expected one text, or the ids of its tokens", where="prompt")
    if body.get("n", 1) != 1:
        raise InputRefused(f"got {shown(body['n'])}, expected 1 answer", where="n")
    request = ReceivedRequest("http", target, str(body.get("user", "")), prompt, tokens, body.get("stream") is True)
    ended_by_itself = settings.tokens is not None if maximum is None else tokens < maximum
    return request, OpenAiForm(request, body, ended_by_itself)


def _chat(messages: Any) -> str:
    """The text of all messages. Other content, such as images, is left out."""
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise InputRefused("expected a list of messages", where="messages")
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return " ".join(texts)


def answer_length(body: dict[str, Any], maximum: Any, settings: Settings) -> int:
    """The number of tokens to send. Raises InputRefused for a body without a valid one."""
    least = body.get("min_tokens", 0)
    for name, value, low in (("max_tokens", maximum, 1), ("min_tokens", least, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= LARGEST_ANSWER:
            raise InputRefused(f"{shown(value)} is not a number of tokens", where=name)
    return settings.length(maximum, least, body.get("ignore_eos") is True)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"failed to parse the request JSON buffer: {error}") from None
    if not isinstance(value, dict):
        raise InputRefused("the request is not a JSON object")
    return value
