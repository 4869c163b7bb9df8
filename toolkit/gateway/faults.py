"""What an error of Triton's tensorrt_llm model means for the request that got it, and for its replica.

A stream over gRPC has errors without codes, so the text decides. One table, for the rehearsal's own words and for
TensorRT-LLM's, release 1.2. Engines: cpp/tensorrt_llm/executor/executorImpl.cpp, batch_manager/
trtGptModelInflightBatching.cpp; cpp/include/tensorrt_llm/common/cudaUtils.h. LLM API: tensorrt_llm/llmapi/llm.py,
executor/proxy.py, executor/executor.py, _torch/pyexecutor/py_executor.py, executor_request_queue.py. There a step that
fails ends all running requests with the exception's own text, which does not say whose fault it is. Our model
(triton_repo/llmapi) passes such a text on as "tensorrt_llm failed: CLASS: TEXT", and that for a wrong request as it is.
"""

from __future__ import annotations

import re
from enum import Enum


class Fault(Enum):
    """Whose fault an error is. It decides what the worker does."""

    REQUEST = "the request's own: 400, never sent again"
    BUSY = "too much load: 429, the client may try again"
    LEAVING = "the replica drains: another replica takes the request"
    STEP = "one step of the engine failed: another replica continues the request"
    GROUP = "the group is lost: the worker ends, and other replicas continue its requests"


_TABLE = (
    (Fault.BUSY, r"maximum queue size"),
    (Fault.LEAVING, r"this server is ending|the engine is shutting down"),
    # Out of memory that no other request will free, and errors after which CUDA's context is unusable.
    (Fault.GROUP, r"a rank of the group has ended"),
    (Fault.GROUP, r"CUDA (runtime )?error|cudaError|CUDA out of memory|illegal memory access|device-side assert"),
    (Fault.GROUP, r"NCCL|ncclSystemError|ncclUnhandledCudaError|Failed to allocate|cudaMalloc"),
    (Fault.STEP, r"Encountered an error in forward"),
    # The LLM API: after a fatal error it shuts itself down, and cancels what runs.
    (Fault.GROUP, r"LLM is shutting down|PyExecutor has already been shutdown|Executor worker died"),
    (Fault.STEP, r"the LLM API has ended this request"),
    (Fault.REQUEST, r"^return_log_probs: "),
    (Fault.STEP, r"^tensorrt_llm failed: "),
)
TABLE = tuple((fault, re.compile(pattern, re.IGNORECASE)) for fault, pattern in _TABLE)


def fault_of(message: str, begun: bool) -> Fault:
    """The fault that an error message means. `begun`: the request has had a token already.

    An unknown error before the first token is the request's own fault. After it, the step failed.
    """
    for fault, pattern in TABLE:
        if pattern.search(message):
            return fault
    return Fault.STEP if begun else Fault.REQUEST
