"""The KServe service over gRPC: decoupled streams (ModelStreamInfer) and single answers (ModelInfer)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Stream
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from toolkit.errors import InputRefused, ToolkitError
from toolkit.known_truth.answer import WORDS, Answer, ReceivedRequest, ServerState, text
from toolkit.known_truth.give import give
from toolkit.known_truth.private_grpclib import Server, ignore_cancellations
from toolkit.known_truth.requests import MODELS, NoSuchModel, answer_length, known_model
from toolkit.known_truth.triton_form import perf_metrics

TOKEN_IDS = range(32, 96)
"""What answers to requests by token ids consist of, again and again."""
SERVICE = "inference.GRPCInferenceService"
STATUSES = {
    400: Status.INVALID_ARGUMENT,
    404: Status.NOT_FOUND,
    429: Status.RESOURCE_EXHAUSTED,
    500: Status.INTERNAL,
}


class Codec(CodecBase):
    """Parses requests. Responses are bytes already."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> Any:
        try:
            return message_type.FromString(data)
        except DecodeError:
            raise GRPCError(Status.INTERNAL, f"the message is not a {message_type.__name__}") from None


class GrpcForm:
    """Makes responses as bytes. Responses for tokens differ only in the word, so each is made once and kept."""

    def __init__(self, request: pb.ModelInferRequest, inputs: Mapping[str, Any], prompt_tokens: int) -> None:
        self._request = request
        self._counted: dict[tuple[int, int], bytes] = {}
        self._wants_in = inputs.get("return_num_input_tokens") is True
        self._wants_out = inputs.get("return_num_output_tokens") is True
        self._wants_times = inputs.get("return_perf_metrics") is True
        self._by_ids = "input_ids" in inputs
        self._wants_final = request.parameters["triton_enable_empty_final_response"].bool_param
        self._prompt_tokens = prompt_tokens

    def opening(self) -> tuple[bytes, ...]:
        return ()

    def event(self, answer: Answer, first: int, count: int) -> bytes:
        if self._wants_times and first + count >= answer.request.tokens:
            return self._streamed(self._response(first, count, perf_metrics(answer)))
        key = (first % (len(TOKEN_IDS) if self._by_ids else len(WORDS)), count)
        if key not in self._counted:
            self._counted[key] = self._streamed(self._response(first, count))
        return self._counted[key]

    def closing(self) -> tuple[bytes, ...]:
        """A last response with the final flag, for clients that ask for it."""
        if not self._wants_final:
            return ()
        response = self._head()
        response.parameters["triton_final_response"].bool_param = True
        return (self._streamed(response),)

    def whole(self, answer: Answer, count: int) -> bytes:
        return self._streamed(self._response(0, count, perf_metrics(answer) if self._wants_times else {}))

    def error(self, message: str) -> bytes:
        response: bytes = pb.ModelStreamInferResponse(error_message=message).SerializeToString()
        return response

    def _head(self) -> pb.ModelInferResponse:
        return pb.ModelInferResponse(model_name=self._request.model_name, model_version="1", id=self._request.id)

    def _response(self, first: int, count: int, times: Mapping[str, int] | None = None) -> pb.ModelInferResponse:
        response = self._head()
        response.parameters["triton_final_response"].bool_param = False
        outputs = [self._tokens(first, count)]
        if self._wants_in:
            outputs.append(("num_input_tokens", "INT32", struct.pack("<i", self._prompt_tokens)))
        if self._wants_out:
            outputs.append(("num_output_tokens", "INT32", struct.pack("<i", count)))
        outputs += [(name, "INT64", struct.pack("<q", value)) for name, value in (times or {}).items()]
        for name, datatype, raw in outputs:
            response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
            response.raw_output_contents.append(raw)
        return response

    def _tokens(self, first: int, count: int) -> tuple[str, str, bytes]:
        if self._by_ids:
            ids = [TOKEN_IDS[number % len(TOKEN_IDS)] for number in range(first, first + count)]
            return "output_ids", "INT32", np.array(ids, np.int32).tobytes()
        word = text(first, count).encode()
        return "text_output", "BYTES", struct.pack("<I", len(word)) + word

    def _streamed(self, response: pb.ModelInferResponse) -> bytes:
        streamed: bytes = pb.ModelStreamInferResponse(infer_response=response).SerializeToString()
        return streamed


class GrpcWire:
    """Sends one answer into a stream that several answers may share."""

    backlog = 0

    def __init__(self, stream: Stream[Any, bytes], turn: asyncio.Lock) -> None:
        self._stream, self._turn = stream, turn

    async def begin(self) -> None:
        """Nothing: as from Triton, the initial metadata come with the first response."""

    async def send(self, data: bytes) -> None:
        async with self._turn:
            await self._stream.send_message(data)

    async def end(self) -> None:
        pass

    async def whole(self, data: bytes) -> None:
        await self.send(data)

    async def fail(self, data: bytes) -> None:
        await self.send(data)

    async def cut(self, data: bytes, streamed: bool) -> None:
        raise GRPCError(Status.UNAVAILABLE, "the connection was cut on demand")

    async def mislead(self) -> None:
        response = pb.ModelInferResponse(model_name="welcome", model_version="1")
        await self.whole(pb.ModelStreamInferResponse(infer_response=response).SerializeToString())

    async def reject(self, status: int, message: str) -> None:
        if status == 400:  # as Triton does: the stream goes on after a refused request
            return await self.send(pb.ModelStreamInferResponse(error_message=message).SerializeToString())
        raise GRPCError(STATUSES[status], message)


class UnaryWire(GrpcWire):
    """Sends one answer as the single response of ModelInfer."""

    async def whole(self, data: bytes) -> None:
        await self.send(pb.ModelStreamInferResponse.FromString(data).infer_response.SerializeToString())

    async def fail(self, data: bytes) -> None:
        raise GRPCError(Status.INTERNAL, pb.ModelStreamInferResponse.FromString(data).error_message)

    async def reject(self, status: int, message: str) -> None:
        raise GRPCError(STATUSES[status], message)


class Service:
    """The handlers of the KServe service, by path."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def __mapping__(self) -> dict[str, Handler]:
        streams = Handler(self.stream_infer, Cardinality.STREAM_STREAM, pb.ModelInferRequest, bytes)
        return {
            f"/{SERVICE}/ServerLive": _unary(_live, pb.ServerLiveRequest),
            f"/{SERVICE}/ServerReady": _unary(_ready, pb.ServerReadyRequest),
            f"/{SERVICE}/ModelReady": _unary(_model_ready, pb.ModelReadyRequest),
            f"/{SERVICE}/RepositoryIndex": _unary(_index, pb.RepositoryIndexRequest),
            f"/{SERVICE}/ModelInfer": _unary(self.infer, pb.ModelInferRequest),
            f"/{SERVICE}/ModelStreamInfer": streams,
        }

    async def infer(self, request: pb.ModelInferRequest, stream: Stream[Any, bytes]) -> None:
        await self._answer(request, UnaryWire(stream, asyncio.Lock()), streams=False)

    async def stream_infer(self, stream: Stream[pb.ModelInferRequest, bytes]) -> None:
        """Answer all requests of one stream at the same time, as Triton does for decoupled models."""
        turn = asyncio.Lock()
        try:
            async with asyncio.TaskGroup() as answers:
                while (request := await _received(stream)) is not None:
                    answers.create_task(self._answer(request, GrpcWire(stream, turn), streams=True))
        except* GRPCError as errors:
            raise errors.exceptions[0] from None

    async def _answer(self, request: pb.ModelInferRequest, wire: GrpcWire, streams: bool) -> None:
        try:
            known_model(request.model_name)
            inputs = _inputs(request)
            prompt, most, by_stream = _asked(inputs)
            tokens = answer_length(inputs, most, self._state.settings)
        except InputRefused as error:
            return await wire.reject(404 if isinstance(error, NoSuchModel) and not streams else 400, str(error))
        target = "ModelStreamInfer" if streams else "ModelInfer"
        streamed = streams and by_stream
        received = ReceivedRequest("grpc", target, request.id, prompt, tokens, streamed)
        await give(self._state, received, GrpcForm(request, inputs, received.prompt_tokens), wire)


Answering = Callable[[Any, Stream[Any, bytes]], Awaitable[None]]


def _unary(answering: Answering, request_type: type) -> Handler:
    async def handle(stream: Stream[Any, bytes]) -> None:
        if (request := await _received(stream)) is not None:
            await answering(request, stream)

    return Handler(handle, Cardinality.UNARY_UNARY, request_type, bytes)


async def _received(stream: Stream[Any, bytes]) -> Any:
    """The next message, or None at the end of the stream. A malformed message becomes a gRPC error, not a traceback."""
    try:
        return await stream.recv_message()
    except NotImplementedError:
        raise GRPCError(Status.UNIMPLEMENTED, "this server does not read compressed messages") from None
    except (AssertionError, struct.error):  # grpclib asserts that a message is as long as it says
        raise GRPCError(Status.INTERNAL, "the message ends too early") from None


async def _live(_request: pb.ServerLiveRequest, stream: Stream[Any, bytes]) -> None:
    await stream.send_message(pb.ServerLiveResponse(live=True).SerializeToString())


async def _ready(_request: pb.ServerReadyRequest, stream: Stream[Any, bytes]) -> None:
    await stream.send_message(pb.ServerReadyResponse(ready=True).SerializeToString())


async def _model_ready(request: pb.ModelReadyRequest, stream: Stream[Any, bytes]) -> None:
    await stream.send_message(pb.ModelReadyResponse(ready=request.name in MODELS).SerializeToString())


async def _index(_request: pb.RepositoryIndexRequest, stream: Stream[Any, bytes]) -> None:
    models = [pb.RepositoryIndexResponse.ModelIndex(name=name, version="1", state="READY") for name in MODELS]
    await stream.send_message(pb.RepositoryIndexResponse(models=models).SerializeToString())


def _inputs(request: pb.ModelInferRequest) -> dict[str, Any]:
    """The inputs by name. An input of one element is a plain value."""
    if len(request.inputs) != len(request.raw_input_contents):
        raise InputRefused("inputs are read from raw_input_contents only", where="inputs")
    inputs: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        try:
            if tensor.datatype == "BYTES":
                items: list[Any] = [item.decode() for item in deserialize_bytes_tensor(raw)]
            else:
                items = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).tolist()
        except (ValueError, TypeError, struct.error):
            raise InputRefused(f"cannot be read as {tensor.datatype}", where=f"input {tensor.name}") from None
        inputs[tensor.name] = items[0] if len(items) == 1 else items
    return inputs


def _asked(inputs: Mapping[str, Any]) -> tuple[str, Any, bool]:
    """Prompt, maximum of tokens, and whether they come one by one: as text, or as tensorrt_llm takes token ids."""
    ids = inputs.get("input_ids")
    if ids is not None:
        numbers = " ".join(map(str, ids if isinstance(ids, list) else [ids]))
        return numbers, inputs.get("request_output_len"), inputs.get("streaming") is True
    prompt = inputs.get("text_input")
    if not isinstance(prompt, str):
        raise InputRefused("expected a text", where="text_input")
    return prompt, inputs.get("max_tokens"), inputs.get("stream") is True


async def start_grpc(state: ServerState) -> tuple[Server, int]:
    """Start the server. Returns it and its port. Raises ToolkitError if the port is taken."""
    settings = state.settings
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.grpc_port)[0]
        listening = socket.create_server(address, family=family, backlog=4096)
    except OSError as error:
        where = f"--grpc-port {settings.grpc_port}"
        raise ToolkitError(f"cannot listen on {settings.host}: {error.strerror}", where=where) from None
    # Accepted connections inherit it. asyncio sets it only on sockets that were made with IPPROTO_TCP.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ignore_cancellations()
    server = Server([Service(state)], codec=Codec())
    await server.start(sock=listening)
    return server, listening.getsockname()[1]
