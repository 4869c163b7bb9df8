"""Triton's gRPC as far as the worker needs it, with answers that a test decides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from toolkit.gateway.triton_stream import LIVE, STREAM

FULL = "Maximum queue size of 4 has been reached, please try again later"


class FakeTriton:
    """A server whose model gives the tokens 10, 11, ...; `error` instead if it is set."""

    def __init__(self, port: int) -> None:
        self.error, self.pause_s, self.gap_s = "", 0.0, 0.0
        """`pause_s` is before an answer, `gap_s` between its tokens."""
        self.breaks_after: int | None = None
        """Tokens after which a step of the engine fails."""
        self.halts_after: int | None = None
        """Tokens after which an answer waits until its client cancels it."""
        self.cancelled = 0
        self.asked: list[dict[str, list[Any]]] = []
        """The input tensors of each request."""
        self.parameters: list[set[str]] = []
        """The names of each request's parameters."""
        self.port = port
        self._server = grpc.server(ThreadPoolExecutor(8))
        handlers = {
            STREAM: grpc.stream_stream_rpc_method_handler(
                self._infer, pb.ModelInferRequest.FromString, pb.ModelStreamInferResponse.SerializeToString
            ),
            LIVE: grpc.unary_unary_rpc_method_handler(
                lambda request, context: pb.ServerLiveResponse(live=True),
                pb.ServerLiveRequest.FromString,
                pb.ServerLiveResponse.SerializeToString,
            ),
        }
        short = {name.rsplit("/", 1)[1]: handler for name, handler in handlers.items()}
        service = STREAM.split("/")[1]
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, short),))
        assert self._server.add_insecure_port(f"127.0.0.1:{port}") == port
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()

    def _infer(self, requests: Iterator[pb.ModelInferRequest], context: Any) -> Iterator[pb.ModelStreamInferResponse]:
        kinds = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}
        for request in requests:
            pairs = zip(request.inputs, request.raw_input_contents, strict=True)
            inputs = {tensor.name: np.frombuffer(raw, kinds[tensor.datatype]).tolist() for tensor, raw in pairs}
            self.asked.append(inputs)
            self.parameters.append({name for name in request.parameters})
            time.sleep(self.pause_s)
            if self.error:
                yield pb.ModelStreamInferResponse(error_message=self.error)
                return
            length = inputs.get("request_output_len") or inputs["sampling_param_max_tokens"]
            for number in range(length[0]):
                if number == self.breaks_after:
                    yield pb.ModelStreamInferResponse(error_message="Encountered an error in forward function: x")
                    return
                time.sleep(self.gap_s if number else 0.0)
                if number == self.halts_after:
                    while context.is_active():
                        time.sleep(0.01)
                    self.cancelled += 1
                    return
                response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                response.outputs.add(name="output_ids", datatype="INT32", shape=[1, 1, 1])
                response.raw_output_contents.append(np.array([10 + number], np.int32).tobytes())
                yield pb.ModelStreamInferResponse(infer_response=response)
