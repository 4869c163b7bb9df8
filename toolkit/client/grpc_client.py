"""Triton over gRPC, with the message types of tritonclient."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Generator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from toolkit.client.base import Client, DeadlineExceeded, Event, Result, ServerFailed, ServerRefused, TimeLimit, quoted
from toolkit.client.grpc_calls import Calls, Unimplemented
from toolkit.client.request import GenerateRequest

UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
READY = "/inference.GRPCInferenceService/ServerReady"
INDEX = "/inference.GRPCInferenceService/RepositoryIndex"
READY_TIMEOUT_S = 5.0
STRUCT = {
    **{"BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
}
"""The code of `struct` for each of Triton's types. numpy is slower for a single number."""

TimedResponse = tuple[pb.ModelInferResponse, float]
"""A response, and time.perf_counter() when it had been read."""


class GrpcClient(Client):
    """Asks Triton over gRPC, with one connection for each request in flight."""

    def __init__(self, url: str, host: str, port: int, connect_timeout_s: float, first_event_timeout_s: float) -> None:
        super().__init__(url, first_event_timeout_s)
        self._calls = Calls(url, host, port, connect_timeout_s)
        self._decoupled: set[str] = set()
        """Models that refused a unary request."""

    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        with contextlib.closing(self._answers(_message(request, True), self._limit(deadline_s))) as answers:
            for answer, received in answers:
                text, outputs = _text_and_outputs(answer)
                yield Event(text, received, outputs)

    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        message, limit = _message(request, False), self._limit(deadline_s)
        answers = self._unary(message, limit)
        if answers is None:
            answers = list(self._answers(message, limit))
        if len(answers) != 1:
            raise ServerFailed(
                f"answered with {len(answers)} responses, expected 1", where=self.url, hint="Use generate_stream."
            )
        [(answer, received)] = answers
        text, outputs = _text_and_outputs(answer)
        return Result(text, received, outputs)

    def _unary(self, message: pb.ModelInferRequest, limit: TimeLimit) -> list[TimedResponse] | None:
        """The response to a unary request. None if the server does not take it: Triton for decoupled models."""
        if message.model_name in self._decoupled:
            return None
        try:
            responses = list(self._calls.call(UNARY, message.SerializeToString(), limit))
        except Unimplemented:
            self._decoupled.add(message.model_name)
            return None
        return [(_parsed(pb.ModelInferResponse, data), received) for data, received in responses]

    def ready(self) -> bool:
        return any(answer.ready for answer in self._query(READY, pb.ServerReadyResponse))

    def models(self) -> list[str]:
        answers = self._query(INDEX, pb.RepositoryIndexResponse)
        return [model.name for answer in answers for model in answer.models if model.state == "READY"]

    def _query(self, method: str, kind: Any) -> list[Any]:
        """The answer to a request without fields. Empty if the server does not answer in time."""
        limit = TimeLimit(self.url, READY_TIMEOUT_S, READY_TIMEOUT_S)
        try:
            return [_parsed(kind, data) for data, _ in self._calls.call(method, b"", limit)]
        except (ServerRefused, ServerFailed, DeadlineExceeded):
            return []

    def close(self) -> None:
        self._calls.close()

    def _answers(self, message: pb.ModelInferRequest, limit: TimeLimit) -> Generator[TimedResponse, None, None]:
        """Yield the responses to a request, each with the time when it had been read."""
        call = self._calls.call(STREAM, message.SerializeToString(), limit)
        with contextlib.closing(call) as responses:
            for data, received in responses:
                response = _parsed(pb.ModelStreamInferResponse, data)
                if response.error_message:
                    # Errors in a stream have no code. The header triton_grpc_error asks for codes, but Triton 2.51
                    # crashes with it. Over HTTP, Triton answers 400 to any request that fails before its first event.
                    raise (ServerFailed if limit.begun else ServerRefused)(response.error_message, where=self.url)
                limit.begun = True
                yield response.infer_response, received
        if not limit.begun:
            raise ServerFailed("the stream ended without an event", where=self.url)


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ServerFailed(f"the server sent {quoted(data)}, expected {kind.DESCRIPTOR.name}") from None


def _message(request: GenerateRequest, stream: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=request.model, id=request.id or "")
    for name, value in request.inputs(stream).items():
        items = list(value) if isinstance(value, list | tuple) else [value]
        datatype = request.tensor(name).type
        if datatype == "STRING":
            datatype = "BYTES"
            encoded = [item.encode() for item in items]
            raw = b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
        else:
            raw = np.array(items, triton_to_np_dtype(datatype)).tobytes()
        message.inputs.add(name=name, datatype=datatype, shape=[1, len(items)])
        message.raw_input_contents.append(raw)
    return message


def _text_and_outputs(answer: pb.ModelInferResponse) -> tuple[str, dict[str, Any]]:
    if len(answer.outputs) != len(answer.raw_output_contents):
        raise ServerFailed("the server sent outputs without their contents")
    outputs = {
        tensor.name: _values(tensor, raw)
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    text = outputs.pop("text_output", None)
    if not isinstance(text, str):
        raise ServerFailed(f"the server sent the outputs {', '.join(outputs) or 'none'}, expected one text_output")
    return text, outputs


def _values(tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> Any:
    """The elements of a tensor: a plain value for one, a flat list for several."""
    try:
        if tensor.datatype == "BYTES":
            values = [item.decode() for item in deserialize_bytes_tensor(raw)]
        else:
            values = [value for (value,) in struct.iter_unpack(f"<{STRUCT[tensor.datatype]}", raw)]
    except (ValueError, KeyError, struct.error) as error:
        raise ServerFailed(f"output {tensor.name} ({tensor.datatype}) cannot be read: {error}") from None
    if len(values) != math.prod(tensor.shape):
        raise ServerFailed(f"output {tensor.name} has {len(values)} elements, but its shape is {list(tensor.shape)}")
    return values[0] if len(values) == 1 else values
