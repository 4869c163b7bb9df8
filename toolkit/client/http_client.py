"""Triton's generate and generate_stream over HTTP."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from urllib.parse import quote

from toolkit.client.base import Client, Event, Result, ServerFailed, quoted
from toolkit.client.connections import Connections, chunks, error_text, json_object, names_in, whole
from toolkit.client.request import GenerateRequest
from toolkit.client.server_sent_events import CUT_OFF, EventStream

# Fields of a JSON answer that are not output tensors. The sequence_ fields are response parameters of an ensemble.
NOT_OUTPUTS = ("model_name", "model_version", "id", "sequence_id", "sequence_start", "sequence_end")


class HttpClient(Client):
    """A client of Triton over HTTP."""

    def __init__(self, url: str, host: str, port: int, connect_timeout_s: float, first_event_timeout_s: float) -> None:
        super().__init__(url, first_event_timeout_s)
        self._connections = Connections(url, host, port, connect_timeout_s)

    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        limit = self._limit(deadline_s)
        with self._connections.post(_path(request, True), _body(request, True), True, limit) as (response, sock):
            if not response.chunked:
                # Without chunks, the end of the answer looks like a broken connection.
                raise ServerFailed("the answer is not chunked, expected a stream in chunks", where=self.url)
            stream = EventStream(chunks(response, sock, limit))
            for data, received, kind in stream:
                if kind == CUT_OFF:
                    raise ServerFailed(f"the stream ended within an event, after {quoted(data)}", where=self.url)
                limit.begun = True
                text, outputs = _text_and_outputs(data)
                yield Event(text, received, outputs)
            if stream.ignored is not None:
                what = f"the stream holds {quoted(stream.ignored)}, which is not part of an event"
                raise ServerFailed(what, where=self.url)
            if not limit.begun:
                raise ServerFailed("the stream ended without an event", where=self.url)

    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        limit = self._limit(deadline_s)
        with self._connections.post(_path(request, False), _body(request, False), False, limit) as (response, sock):
            data, received = whole(response, sock, limit)
            text, outputs = _text_and_outputs(data)
            return Result(text, received, outputs)

    def ready(self) -> bool:
        return self._connections.is_ready("/v2/health/ready")

    def models(self) -> list[str]:
        index = self._connections.listed("POST", "/v2/repository/index")
        return names_in(index, "name", state="READY")

    def close(self) -> None:
        self._connections.close()


def _path(request: GenerateRequest, streams: bool) -> str:
    return f"/v2/models/{quote(request.model, safe='')}/{'generate_stream' if streams else 'generate'}"


def _body(request: GenerateRequest, streams: bool) -> dict[str, Any]:
    named = {} if request.id is None else {"id": request.id}
    return {**named, **request.inputs(streams)}


def _text_and_outputs(data: bytes) -> tuple[str, dict[str, Any]]:
    answer = json_object(data)
    if "error" in answer:
        raise ServerFailed(error_text(answer["error"]))
    text = answer.pop("text_output", None)
    if not isinstance(text, str):
        raise ServerFailed(f"the server sent {quoted(data)}, expected one text_output")
    for name in NOT_OUTPUTS:
        answer.pop(name, None)
    return text, answer
