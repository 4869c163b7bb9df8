"""Triton's decoupled stream over gRPC, on the stubs that tritonclient ships.

tritonclient's own client hands responses to a callback in another thread; calling the stream directly gives
an iterator, a deadline and a cancellation for each request, and the time at which a message was there.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

# Or gRPC's core writes a line of its own to the terminal when a server goes away.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import grpc._channel
import grpc.experimental
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from toolkit.client.base import Client, Event, Result, ServerFailed, ServerRefused, TimeLimit
from toolkit.client.request import GenerateRequest

SERVICE = "/inference.GRPCInferenceService"
READY_TIMEOUT_S = 5.0
# Streams in flight for each process under gevent; a stream takes a thread only while it lives.
GEVENT_STREAMS = 4096
SWITCH_S = 0.0005
# Triton's default allows a silent connection one ping in 300 s, and ends it after two that come earlier.
KEEPALIVE_MS = 330_000
STRUCT = {
    **{"BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
}
"""How each of Triton's types is in a response, as `struct` has it: numpy would take longer for one number."""
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
}


class GrpcClient(Client):
    """One connection, which all streams of this client share; other clients do not share it."""

    def __init__(self, url: str, host: str, port: int, connect_timeout_s: float, first_event_timeout_s: float) -> None:
        super().__init__(url, first_event_timeout_s)
        if _under_gevent():
            _keep_locks_of_threads()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._channel = grpc.insecure_channel(address, _channel_options(connect_timeout_s))
        # Declared as a stream in one direction, because one request is sent: on the wire it is the same.
        self._stream = self._channel.unary_stream(
            f"{SERVICE}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self._ready = self._channel.unary_unary(
            f"{SERVICE}/ServerReady",
            request_serializer=pb.ServerReadyRequest.SerializeToString,
            response_deserializer=pb.ServerReadyResponse.FromString,
        )

    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        """As Client says. Under gevent the events are given when the last is there, each with its own time."""
        with contextlib.closing(self._answers(_message(request, True), self._limit(deadline_s))) as answers:
            for answer, received in answers:
                text, outputs = _text_and_outputs(answer)
                yield Event(text, received, outputs)

    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        # Triton's unary call refuses decoupled models, so this is a stream of one response.
        answers = list(self._answers(_message(request, False), self._limit(deadline_s)))
        if len(answers) != 1:
            raise ServerFailed(
                f"answered with {len(answers)} responses, expected 1", where=self.url, hint="Use generate_stream."
            )
        [(answer, received)] = answers
        text, outputs = _text_and_outputs(answer)
        return Result(text, received, outputs)

    def ready(self) -> bool:
        try:
            wanted = functools.partial(self._ready, pb.ServerReadyRequest(), timeout=READY_TIMEOUT_S)
            return (_threads().apply(wanted) if _under_gevent() else wanted()).ready
        except grpc.RpcError:
            return False

    def close(self) -> None:
        self._channel.close()

    def _answers(
        self, message: pb.ModelInferRequest, limit: TimeLimit
    ) -> Generator[tuple[pb.ModelInferResponse, float], None, None]:
        """The responses to a request, each with the time at which it was there."""
        call = self._stream(message, timeout=limit.seconds)
        too_late = threading.Timer(limit.first_event_s, lambda: limit.begun or call.cancel())
        if limit.first_event_s < limit.seconds:
            too_late.start()
        responses = _timed(call, limit)
        try:
            for response, received in _read_in_a_thread(responses) if _under_gevent() else responses:
                if response.error_message:
                    # A stream's errors have no code: the header triton_grpc_error would ask for one, but with
                    # it Triton 2.51 crashes soon. HTTP answers 400 to any request that fails at the first.
                    raise (ServerFailed if limit.begun else ServerRefused)(response.error_message, where=self.url)
                yield response.infer_response, received
        except grpc.RpcError:
            raise self._error(call.code(), call.details() or "", limit) from None
        finally:
            too_late.cancel()
            call.cancel()
        if not limit.begun:
            raise ServerFailed("the stream ended without an event", where=self.url)

    def _error(self, code: grpc.StatusCode, details: str, limit: TimeLimit) -> Exception:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or limit.is_over():
            return limit.exceeded()
        if code in REFUSALS:
            return ServerRefused(details, where=self.url)
        hint = "Is the server started, and is this its gRPC port?" if "connect" in details else None
        return ServerFailed(f"{code.name}: {details}", where=self.url, hint=hint)


Timed = Iterator[tuple[pb.ModelStreamInferResponse, float]]


def _timed(call: Any, limit: TimeLimit) -> Timed:
    """The responses as they come, to the first that is an error, each with the time at which it was there."""
    for response in call:
        received = time.perf_counter()
        limit.begun |= not response.error_message
        yield response, received
        if response.error_message:
            return


def _read_in_a_thread(responses: Timed) -> Timed:
    """The same when the last is there. gRPC's own way with gevent changes threads twice for each response: with 64
    streams that takes most of a core and shows tokens tens of milliseconds late.
    """
    got = []

    def read() -> Exception | None:
        try:
            for response in responses:
                got.append(response)
        except Exception as error:
            return error
        return None

    failure = _threads().apply(read)
    yield from got
    if failure:
        raise failure


def _threads() -> Any:
    """gevent's pool of threads that it does not know; large enough, as each stream keeps one while it lives."""
    import gevent

    # What a thread has received it sees when it may run: else after up to 5 ms of whatever else computes here.
    sys.setswitchinterval(SWITCH_S)

    pool = gevent.get_hub().threadpool
    pool.maxsize = max(pool.maxsize, GEVENT_STREAMS)
    return pool


@functools.cache
def _keep_locks_of_threads() -> None:
    """Let gRPC have locks that are not gevent's: those hang where threads that gevent does not know meet at one, as
    the streams of a connection do. tests/client/test_gevent.py has them meet.
    """
    from gevent.monkey import get_original
    from grpc._cython import cygrpc

    lock, recursive = get_original("_thread", "allocate_lock"), get_original("_thread", "RLock")

    class Threading:
        Lock, RLock = staticmethod(lock), staticmethod(recursive)

        @staticmethod
        def Condition(given: Any = None) -> threading.Condition:
            return threading.Condition(given or recursive())

        def __getattr__(self, name: str) -> Any:
            return getattr(threading, name)

    for module in (grpc._channel, cygrpc):
        module.threading = Threading()


@functools.cache
def _under_gevent() -> bool:
    """Whether waiting for a socket is gevent's, so that waiting in gRPC would hold up everything else."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def _channel_options(connect_timeout_s: float) -> list[tuple[str, Any]]:
    return [
        # The waiting thread reads the connection itself: no second thread to wake for each message.
        (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
        # A connection for each client, as clients on other machines would have, and none through a proxy.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.min_reconnect_backoff_ms", int(connect_timeout_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


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
    """The elements of a tensor: one as a plain value, several as a flat list."""
    try:
        if tensor.datatype == "BYTES":
            values = [item.decode() for item in deserialize_bytes_tensor(raw)]
        else:
            values = [value for (value,) in struct.iter_unpack(f"<{STRUCT[tensor.datatype]}", raw)]
    except (ValueError, KeyError, struct.error) as error:
        raise ServerFailed(f"output {tensor.name} ({tensor.datatype}) cannot be read: {error}") from None
    if len(values) != math.prod(tensor.shape):
        raise ServerFailed(f"output {tensor.name} has {len(values)} elements, its shape says {list(tensor.shape)}")
    return values[0] if len(values) == 1 else values
