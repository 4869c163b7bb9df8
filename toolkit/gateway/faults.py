"""What an error of Triton's tensorrt_llm model means for the request that got it, and for its replica.

A stream over gRPC has errors without codes, and over HTTP Triton has one status for all, so the text decides. One
table, for the worker and for Envoy, with the rehearsal's own words and those of TensorRT-LLM 1.2. Engines:
cpp/tensorrt_llm/executor/executorImpl.cpp, batch_manager/trtGptModelInflightBatching.cpp; cpp/include/tensorrt_llm/
common/cudaUtils.h. LLM API: tensorrt_llm/llmapi/llm.py, executor/proxy.py, executor/executor.py,
_torch/pyexecutor/py_executor.py, executor_request_queue.py. There a step that fails ends all running requests with the
exception's own text, which does not say whose fault it is. Our model (triton_repo/llmapi) passes such a text on as
"tensorrt_llm failed: CLASS: TEXT", and that for a wrong request as it is.
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


TABLE = (
    (Fault.BUSY, "maximum queue size"),
    (Fault.LEAVING, "this server is ending"),
    (Fault.LEAVING, "the engine is shutting down"),
    # Out of memory that no other request will free, and errors after which CUDA's context is unusable.
    (Fault.GROUP, "a rank of the group has ended"),
    (Fault.GROUP, "cuda error"),
    (Fault.GROUP, "cuda runtime error"),
    (Fault.GROUP, "cudaerror"),
    (Fault.GROUP, "cuda out of memory"),
    (Fault.GROUP, "illegal memory access"),
    (Fault.GROUP, "device-side assert"),
    (Fault.GROUP, "nccl"),
    (Fault.GROUP, "failed to allocate"),
    (Fault.GROUP, "cudamalloc"),
    (Fault.STEP, "encountered an error in forward"),
    # The LLM API: after a fatal error it shuts itself down, and cancels what runs.
    (Fault.GROUP, "llm is shutting down"),
    (Fault.GROUP, "pyexecutor has already been shutdown"),
    (Fault.GROUP, "executor worker died"),
    (Fault.STEP, "the llm api has ended this request"),
    (Fault.REQUEST, "return_log_probs: "),
    (Fault.STEP, "tensorrt_llm failed: "),
)
"""A phrase in an error's own words, in small letters, and what it means. The first that is found decides."""
_REQUEST_ID, _REQUEST_ID_ENDS = "[request id: ", "] "
"""Around the id of a request, which its client chooses, in Triton's messages."""
_QUOTED = re.compile(r"""(?<!\w)(["']).*?(?:\1(?!\w)|$)""", re.ASCII | re.DOTALL)
"""A text between quotes, also if its second quote is missing. An apostrophe inside a word is not a quote."""


def own_words(message: str) -> str:
    """The message without what it repeats from its request: a user's words may be those of a failed engine.

    Envoy's Lua does the same (toolkit.gateway.error_form).
    """
    begin, has_id, rest = message.partition(_REQUEST_ID)
    text = begin + rest.partition(_REQUEST_ID_ENDS)[2] if has_id else message
    return _QUOTED.sub("", re.sub(r"""\\["']""", "", text))


def fault_of(message: str, begun: bool) -> Fault:
    """The fault that an error message means. `begun`: the request has had a token already.

    An unknown error before the first token is the request's own fault. After it, the step failed.
    """
    text = own_words(message).lower()
    for fault, phrase in TABLE:
        if phrase in text:
            return fault
    return Fault.STEP if begun else Fault.REQUEST
