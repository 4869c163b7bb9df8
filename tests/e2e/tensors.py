"""Inputs and outputs of NVIDIA's clients: tritonclient's own objects, shaped [1, n] as theirs are."""

from __future__ import annotations

import queue
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

UNSIGNED = ("seed",)


def tensor(module: ModuleType, name: str, value: Any) -> Any:
    """The value as an InferInput of tritonclient.http, .grpc or .grpc.aio."""
    array = np.array(value)
    if array.dtype.kind in "US":
        array = np.array(value, object)
    if array.dtype.kind == "i":
        array = array.astype(np.uint64 if name in UNSIGNED else np.int32)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    array = array.reshape(1, -1) if array.ndim < 2 else array[None]
    made = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def inputs(module: ModuleType = grpc, **values: Any) -> list[Any]:
    return [tensor(module, name, value) for name, value in values.items()]


def outputs(result: Any) -> dict[str, Any]:
    """The output tensors of a gRPC result as nested lists, without the batch dimension, which texts have not."""
    arrays = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
    return {name: (array if array.ndim == 1 else array[0]).tolist() for name, array in arrays.items()}


def is_final(result: Any) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


class Stream:
    """A gRPC stream: several requests may run on it, and their responses come as they are made."""

    def __init__(self, address: str) -> None:
        self._responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
        self._client = grpc.InferenceServerClient(address)
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))

    def send(self, model: str, id: str = "", **values: Any) -> None:
        self.send_tensors(model, inputs(**values), id)

    def send_tensors(self, model: str, tensors: list[Any], id: str = "") -> None:
        self._client.async_stream_infer(model, tensors, request_id=id, enable_empty_final_response=True)

    def next(self, timeout_s: float = 60) -> Any:
        """The next response; raises what the server answered instead."""
        result, error = self._responses.get(timeout=timeout_s)
        if error:
            raise error
        return result

    def rest(self) -> list[Any]:
        """The responses up to the final one."""
        seen = [self.next()]
        while not is_final(seen[-1]):
            seen.append(self.next())
        return seen

    def cancel(self) -> None:
        """Go away, and let the server know at once."""
        self._client.stop_stream(cancel_requests=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._client.close()
