"""OpenAI's /v1/chat/completions and /v1/completions, as trtllm-serve, vLLM and others serve them.

Differences from OpenAI: max_tokens instead of max_completion_tokens, and the extensions min_tokens, ignore_eos, top_k
and repetition_penalty, which have the same names in trtllm-serve and vLLM.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Generator, Iterator
from typing import Any

from toolkit.client.base import Client, DeadlineExceeded, Event, Result, TimeLimit
from toolkit.client.connections import Connections, chunks, names_in, whole
from toolkit.client.openai_answer import StreamedAnswer, result
from toolkit.client.request import GenerateRequest
from toolkit.client.server_sent_events import EventStream
from toolkit.errors import InputRefused, ToolkitError, shown
from toolkit.secrecy import INSTEAD, SHORTEST_SECRET

KEY = "OPENAI_API_KEY"
CHAT, COMPLETIONS = "/chat/completions", "/completions"
# Triton's name of each input, and its name in OpenAI's API and its extensions.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "min_tokens": "min_tokens",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "stop_words": "stop",
}
NO_END_ID = -1
AFTER_DONE_S = 0.2
"""How long to wait after [DONE] for the end of the response, so that the connection can be used again."""
COUNTS = ("return_num_input_tokens", "return_num_output_tokens")
# Inputs that ask Triton for further outputs. These servers do not have them.
NOT_SENT = (*COUNTS, "return_perf_metrics")


class OpenAiClient(Client):
    """Asks one endpoint.

    Chat completions get the request's messages, or the prompt as one user message, and apply the chat template.
    Completions get the prompt as it is. The reasoning of a thinking model is text too, in events with the output
    `reasoning: True`.
    """

    def __init__(
        self,
        url: str,
        host: str,
        port: int,
        connect_timeout_s: float,
        first_event_timeout_s: float,
        *,
        tls: bool,
        path: str,
    ) -> None:
        super().__init__(url, first_event_timeout_s)
        self._key = _key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        context = ssl.create_default_context() if tls else None
        self._connections = Connections(url, host, port, connect_timeout_s, context, headers)
        self._path, self.takes_messages = path, path.endswith(CHAT)
        self._models = path.removesuffix(CHAT if self.takes_messages else COMPLETIONS) + "/models"

    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        limit = self._limit(deadline_s)
        body = self._body(request, True)
        with self._without_key(), self._connections.post(self._path, body, True, limit) as (response, sock):
            answer = StreamedAnswer(self.takes_messages)
            stream = EventStream(_until_done(chunks(response, sock, limit), answer, limit))
            for data_received_and_kind in stream:
                event = answer.event(*data_received_and_kind)
                if event is not None:
                    limit.begun = True
                    yield event
            answer.end(stream.ignored)

    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        limit = self._limit(deadline_s)
        body = self._body(request, False)
        with self._without_key(), self._connections.post(self._path, body, False, limit) as (response, sock):
            return result(*whole(response, sock, limit), self.takes_messages)

    def ready(self) -> bool:
        with self._without_key():
            return self._connections.is_ready(self._models)

    def models(self) -> list[str]:
        answer = self._connections.listed("GET", self._models)
        return names_in(answer.get("data"), "id") if isinstance(answer, dict) else []

    def close(self) -> None:
        self._connections.close()

    def _body(self, request: GenerateRequest, streams: bool) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": request.prompt}
        if self.takes_messages:
            messages = request.messages or [{"role": "user", "content": request.prompt}]
            prompt = {"messages": [dict(message) for message in messages]}
        body = {"model": request.model, **prompt, "max_tokens": request.max_tokens, "stream": streams}
        for name, value in request.sampling.items():
            if name in SAMPLING:
                body[SAMPLING[name]] = list(value) if isinstance(value, tuple) else value
            elif name == "end_id" and value == NO_END_ID:
                body["ignore_eos"] = True
            elif name not in NOT_SENT:
                known = ", ".join(sorted(SAMPLING))
                hint = f"It takes {known}, and end_id {NO_END_ID} to ignore the model's own."
                raise InputRefused(f"{shown(value)}: OpenAI's API has no such input", where=f"input {name}", hint=hint)
        if streams and any(request.sampling.get(name) for name in COUNTS):
            body["stream_options"] = {"include_usage": True}
        return body

    @contextlib.contextmanager
    def _without_key(self) -> Iterator[None]:
        """Remove the API key from errors: servers repeat it there, and errors go to logs and reports."""
        try:
            yield
        except ToolkitError as error:
            if len(self._key) >= SHORTEST_SECRET and self._key in str(error):
                raise type(error)(error.what.replace(self._key, INSTEAD), where=self.url) from None
            raise


def _until_done(
    reads: Iterator[tuple[bytes, float]], answer: StreamedAnswer, limit: TimeLimit
) -> Iterator[tuple[bytes, float]]:
    """The reads of a response. Does not wait long for a server that leaves it open after [DONE]."""
    try:
        for read in reads:
            yield read
            if answer.done:
                limit.end_within(AFTER_DONE_S)
    except (TimeoutError, DeadlineExceeded):
        if not answer.done:
            raise


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        hint = f"Set it again: export {KEY}=..."
        raise ToolkitError("holds characters that an API key cannot have", where=f"variable {KEY}", hint=hint)
    return key
