"""tensorrt_llm_bls of engine: pytorch. Passes requests on to tensorrt_llm, under its names, and texts back.

It exists because a client that leaves ends its request here. Triton does not cancel running steps of an ensemble. Each
request has a thread that reads tensorrt_llm's stream, and closes it when the client has left.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils
from model_values import ModelValues
from one_line import fault_of_ours
from outputs import Outputs
from reply import CancellationWatch, Reply
from server_address import http_address
from server_process import end_with_server
from server_stream import Failed, ServerStream, plain


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        end_with_server()
        values = ModelValues(args)
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(values.config)
        self.outputs = Outputs(values.config)
        self.model, self.address = values["tensorrt_llm_model_name"], http_address()
        self.renamed = json.loads(values["renamed_inputs"])
        self.watch = CancellationWatch(int(values["cancellation_check_period_ms"]) / 1000)

    def execute(self, requests: Iterable[Any]) -> None:
        for request in requests:
            reply = Reply(request.get_response_sender(), decoupled=self.decoupled)
            try:
                inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                body = {self.renamed.get(name, name): plain(array) for name, array in inputs.items() if array.size}
                stream = ServerStream(self.address, self.model, {**body, "id": request.request_id()})
                threading.Thread(target=self._serve, args=(stream, reply), daemon=True).start()
            except Exception as fault:
                reply.fail(fault_of_ours("tensorrt_llm_bls", fault))

    def finalize(self) -> None:
        self.watch.end()

    def _serve(self, stream: ServerStream, reply: Reply) -> None:
        self.watch.add(reply, stop=stream.close)
        try:
            for event in stream:
                # A model that is not decoupled owes exactly one response.
                reply.send(self.outputs.tensors(event, event.get("text_output", [""])), last=not self.decoupled)
        except Failed as failure:
            reply.fail(failure.error)
        except Exception as fault:
            reply.fail(fault_of_ours("tensorrt_llm_bls", fault))
        finally:
            self.watch.remove(reply)
            reply.end()
