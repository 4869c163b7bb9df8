"""The KServe service over gRPC: decoupled streams, and one answer for one request."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from toolkit.errors import InputRefused, ToolkitError
from toolkit.known_truth.answer import WORDS, Answer, Asked, State, text
from toolkit.known_truth.give import give
from toolkit.known_truth.requests import MODELS, NoSuchModel, answer_length, known_model
from toolkit.known_truth.triton_form import perf_metrics

SERVICE = "inference.GRPCInferenceService"
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
}
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    # Or a second server on the same port gets a share of the first one's requests.
    ("grpc.so_reuseport", 0),
]


class GrpcForm:
    """Responses in bytes: those of a token differ by its word alone and are made once for each."""

    def __init__(self, request: pb.ModelInferRequest, inputs: Mapping[str, Any], prompt_tokens: int) -> None:
        self._request, self._counted = request, {}  # type: ignore[var-annotated]
        self._wants_in = inputs.get("return_num_input_tokens") is True
        self._wants_out = inputs.get("return_num_output_tokens") is True
        self._wants_times = inputs.get("return_perf_metrics") is True
        self._wants_final = request.parameters["triton_enable_empty_final_response"].bool_param
        self._prompt_tokens = prompt_tokens

    def opening(self) -> tuple[bytes, ...]:
        return ()

    def event(self, answer: Answer, first: int, count: int) -> bytes:
        if self._wants_times and first + count >= answer.asked.tokens:
            return self._streamed(self._response(first, count, perf_metrics(answer)))
        key = (first % len(WORDS), count)
        if key not in self._counted:
            self._counted[key] = self._streamed(self._response(first, count))
        return self._counted[key]

    def closing(self) -> tuple[bytes, ...]:
        """The flag that tells the end comes in a response of its own, to those who ask for it."""
        if not self._wants_final:
            return ()
        response = self._head()
        response.parameters["triton_final_response"].bool_param = True
        return (self._streamed(response),)

    def whole(self, answer: Answer, count: int) -> bytes:
        return self._streamed(self._response(0, count, perf_metrics(answer) if self._wants_times else {}))

    def error(self, message: str) -> bytes:
        return pb.ModelStreamInferResponse(error_message=message).SerializeToString()

    def _head(self) -> pb.ModelInferResponse:
        return pb.ModelInferResponse(model_name=self._request.model_name, model_version="1", id=self._request.id)

    def _response(self, first: int, count: int, times: Mapping[str, int] | None = None) -> pb.ModelInferResponse:
        response = self._head()
        response.parameters["triton_final_response"].bool_param = False
        word = text(first, count).encode()
        outputs = [("text_output", "BYTES", struct.pack("<I", len(word)) + word)]
        if self._wants_in:
            outputs.append(("num_input_tokens", "INT32", struct.pack("<i", self._prompt_tokens)))
        if self._wants_out:
            outputs.append(("num_output_tokens", "INT32", struct.pack("<i", count)))
        outputs += [(name, "INT64", struct.pack("<q", value)) for name, value in (times or {}).items()]
        for name, datatype, raw in outputs:
            response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
            response.raw_output_contents.append(raw)
        return response

    def _streamed(self, response: pb.ModelInferResponse) -> bytes:
        return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()


class GrpcWire:
    """An answer's way into a stream, which several may share."""

    backlog = 0

    def __init__(self, context: grpc.aio.ServicerContext, turn: asyncio.Lock) -> None:
        self._context, self._turn = context, turn

    async def begin(self) -> None:
        pass

    async def send(self, data: bytes) -> None:
        async with self._turn:
            await self._context.write(data)

    async def end(self) -> None:
        pass

    async def whole(self, data: bytes) -> None:
        await self.send(data)

    async def cut(self, data: bytes, streamed: bool) -> None:
        await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was cut on demand")

    async def mislead(self) -> None:
        response = pb.ModelInferResponse(model_name="welcome", model_version="1")
        await self.whole(pb.ModelStreamInferResponse(infer_response=response).SerializeToString())

    async def reject(self, status: int, message: str) -> None:
        if status == 400:  # as Triton does: a stream goes on after a request that it refuses
            return await self.send(pb.ModelStreamInferResponse(error_message=message).SerializeToString())
        await self._context.abort(CODES[status], message)


class UnaryWire(GrpcWire):
    """An answer's way into the one response of ModelInfer."""

    answer = pb.ModelInferResponse()

    async def whole(self, data: bytes) -> None:
        found = pb.ModelStreamInferResponse.FromString(data)
        if found.error_message:
            await self._context.abort(CODES[500], found.error_message)
        self.answer = found.infer_response

    async def reject(self, status: int, message: str) -> None:
        await self._context.abort(CODES[status], message)


class Service:
    def __init__(self, state: State) -> None:
        self._state = state

    async def server_live(self, request: pb.ServerLiveRequest, context: Any) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def server_ready(self, request: pb.ServerReadyRequest, context: Any) -> bytes:
        return pb.ServerReadyResponse(ready=True).SerializeToString()

    async def model_ready(self, request: pb.ModelReadyRequest, context: Any) -> bytes:
        return pb.ModelReadyResponse(ready=request.name in MODELS).SerializeToString()

    async def infer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> bytes:
        wire = UnaryWire(context, asyncio.Lock())
        await self._answer(request, wire, streams=False)
        return wire.answer.SerializeToString()

    async def stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Requests of one stream are answered at once, as Triton does it for decoupled models."""
        turn, tasks = asyncio.Lock(), set[asyncio.Task[None]]()
        try:
            async for request in requests:
                tasks = {task for task in tasks if not task.done()}
                tasks.add(asyncio.create_task(self._answer(request, GrpcWire(context, turn), streams=True)))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, request: pb.ModelInferRequest, wire: GrpcWire, streams: bool) -> None:
        try:
            known_model(request.model_name)
            inputs = _inputs(request)
            prompt = inputs.get("text_input")
            if not isinstance(prompt, str):
                raise InputRefused("expected a text", where="text_input")
            tokens = answer_length(inputs, inputs.get("max_tokens"), self._state.settings)
        except InputRefused as error:
            return await wire.reject(404 if isinstance(error, NoSuchModel) and not streams else 400, str(error))
        target = "ModelStreamInfer" if streams else "ModelInfer"
        asked = Asked("grpc", target, request.id, prompt, tokens, streams and inputs.get("stream") is True)
        await give(self._state, asked, GrpcForm(request, inputs, asked.prompt_tokens), wire)


def _inputs(request: pb.ModelInferRequest) -> dict[str, Any]:
    """By name; those of one element as plain values."""
    if len(request.inputs) != len(request.raw_input_contents):
        raise InputRefused("inputs are read from raw_input_contents only", where="inputs")
    found: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        try:
            if tensor.datatype == "BYTES":
                items: list[Any] = [item.decode() for item in deserialize_bytes_tensor(raw)]
            else:
                items = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).tolist()
        except (ValueError, TypeError, struct.error):
            raise InputRefused(f"cannot be read as {tensor.datatype}", where=f"input {tensor.name}") from None
        found[tensor.name] = items[0] if len(items) == 1 else items
    return found


async def start_grpc(state: State) -> tuple[grpc.aio.Server, int]:
    """The server and its port. Raises ToolkitError when the port is taken."""
    service, settings = Service(state), state.settings
    where = f"--grpc-port {settings.grpc_port}"
    try:
        # gRPC would write lines of its own and not say why.
        family, *_, address = socket.getaddrinfo(settings.host, settings.grpc_port)[0]
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise ToolkitError(f"cannot listen on {settings.host}: {error.strerror}", where=where) from None
    unary, streams = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    # No serializers: responses are bytes already.
    handlers = {
        "ServerLive": unary(service.server_live, pb.ServerLiveRequest.FromString),
        "ServerReady": unary(service.server_ready, pb.ServerReadyRequest.FromString),
        "ModelReady": unary(service.model_ready, pb.ModelReadyRequest.FromString),
        "ModelInfer": unary(service.infer, pb.ModelInferRequest.FromString),
        "ModelStreamInfer": streams(service.stream_infer, pb.ModelInferRequest.FromString),
    }
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError:
        port = 0
    if not port:
        raise ToolkitError(f"cannot listen on {settings.host}", where=where, hint="Is it in use?")
    await server.start()
    return server, port
