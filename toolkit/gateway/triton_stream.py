"""One request by token ids to Triton's tensorrt_llm model: a gRPC stream, as tokens and log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

MODEL = "tensorrt_llm"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
LARGEST_MESSAGE = 64 << 20
COUNTED_BY_ITS_SENDER = "counted_by_its_sender"
"""Parameter of a request that tells our llmapi model that the front end counts its latencies."""
OPTIONS = [("grpc.max_receive_message_length", LARGEST_MESSAGE), ("grpc.max_send_message_length", LARGEST_MESSAGE)]

_TYPES: dict[str, Literal["i", "f"]] = {"output_ids": "i", "sequence_length": "i", "output_log_probs": "f"}
"""The outputs that are read, with the type of their elements as Python's struct names it."""


class ModelError(Exception):
    """An error that the model sent for this request; the server still works."""


class ServerGone(Exception):
    """The connection to the server ended, or could not be opened."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A piece of an answer: new tokens, and their log-probabilities where they were asked for."""

    ids: list[int]
    log_probs: list[float]


class Answer:
    """The pieces of one request's answer, as they come.

    Reads raise ModelError and ServerGone. Each token of a replica passes here, so there is no task or queue for it.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall) -> None:
        self._call, self._cancelled = call, False

    def cancel(self) -> None:
        """End it, here and in the engine. It then has no more pieces."""
        self._cancelled = True
        self._call.cancel()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Tokens:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                if response.error_message:
                    raise ModelError(response.error_message)
                if piece := _tokens(response.infer_response):
                    return piece
        except grpc.RpcError as error:
            raise ServerGone(f"{error.code().name}: {error.details()}") from None
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
        raise StopAsyncIteration


class TritonStream:
    """Streams from one Triton. Use it in one asyncio loop. `parameters` are sent with each request."""

    def __init__(self, address: str, parameters: Sequence[str] = ()) -> None:
        self._parameters = parameters
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stream = self._channel.unary_stream(  # one request per call: nothing more has to be sent
            STREAM,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self._live = self._channel.unary_unary(
            LIVE,
            request_serializer=pb.ServerLiveRequest.SerializeToString,
            response_deserializer=pb.ServerLiveResponse.FromString,
        )

    async def live(self, timeout_s: float) -> bool:
        """Whether the server answers, whatever the state of its models."""
        try:
            return bool((await self._live(pb.ServerLiveRequest(), timeout=timeout_s)).live)
        except grpc.RpcError:
            return False

    def ask(self, name: str, tensors: Iterable[tuple[str, str, list[Any]]]) -> Answer:
        """Send a request."""
        message = _message(name, tensors)
        for parameter in self._parameters:
            message.parameters[parameter].bool_param = True
        return Answer(self._stream(message))

    async def close(self) -> None:
        """End all streams."""
        await self._channel.close()


def _message(name: str, tensors: Iterable[tuple[str, str, list[Any]]]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=MODEL, id=name)
    for tensor, datatype, values in tensors:
        shape = [1, len(values)]
        if tensor == "stop_words_list":  # [2, n]: the ids of all words, and where each word ends
            shape = [1, 2, len(values) // 2]
        message.inputs.add(name=tensor, datatype=datatype, shape=shape)
        message.raw_input_contents.append(np.array(values, triton_to_np_dtype(datatype)).tobytes())
    return message


def _tokens(response: pb.ModelInferResponse) -> Tokens | None:
    """The new tokens of a response; None for the empty one that only ends a stream."""
    found: dict[str, list[Any]] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name in _TYPES:
            found[output.name] = memoryview(raw).cast(_TYPES[output.name]).tolist()
    if "output_ids" not in found:
        return None
    ids = found["output_ids"]
    if "sequence_length" in found:  # output_ids may be padded beyond it
        ids = ids[: found["sequence_length"][0]]
    return Tokens(ids, found.get("output_log_probs", [])[-len(ids) :] if ids else [])
