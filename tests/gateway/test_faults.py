"""An error of the engine is the request's own, load, one step's or the group's: each text as its source writes it."""

from __future__ import annotations

import pytest

from tests.gateway.quotes import QUOTED
from toolkit.gateway.faults import Fault, fault_of

CUDA = (
    "Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] CUDA runtime error in cudaEventSynchronize"
    "(get()): an illegal memory access was encountered"
)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        # Ours.
        ("max_tokens: 0, expected 1 or more", Fault.REQUEST),
        ("Maximum queue size of 64 has been reached, please try again later. Exceeds maximum queue size", Fault.BUSY),
        ("this server is ending: send the request to another one, or again later", Fault.LEAVING),
        ("a rank of the group has ended, and the rest of the answer is lost. Send the request again", Fault.GROUP),
        # TensorRT-LLM's.
        ("Prompt length (9000) exceeds maximum input length (8191).", Fault.REQUEST),
        ("Maximum queue size of 10 has been reached, please try again later", Fault.BUSY),
        (CUDA, Fault.GROUP),
        ("[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc(ptr, n): out of memory", Fault.GROUP),
        ("Failed, NCCL error /src/ncclUtils.cpp:98 'unhandled cuda error'", Fault.GROUP),
        ("Encountered an error in forwardAsync function: No free block found", Fault.STEP),
        # The LLM API's, as our model of engine: pytorch passes them on.
        ("require 0 <= top_p <= 1, got top_p=2.0", Fault.REQUEST),
        ("The sum of prompt length (9000.0), query length (0) should not exceed max_num_tokens (8192)", Fault.REQUEST),
        ("sampling_param_seed: the sampler of this TensorRT-LLM does not apply it", Fault.REQUEST),
        ("return_log_probs: this TensorRT-LLM gives those of the likeliest token only; ask greedily", Fault.REQUEST),
        ("input_ids: Token ID out of range", Fault.REQUEST),
        ("Maximum queue size of 64 has been reached, please try again later. Running requests count too.", Fault.BUSY),
        ("tensorrt_llm failed: RequestError: total_num_tokens > max_num_tokens", Fault.STEP),
        ("tensorrt_llm failed: RequestError: Sampling failed", Fault.STEP),
        ("tensorrt_llm failed: RequestError: CUDA out of memory. Tried to allocate 2.00 GiB", Fault.GROUP),
        ("tensorrt_llm failed: RequestError: CUDA error: device-side assert triggered", Fault.GROUP),
        ("tensorrt_llm failed: RuntimeError: LLM is shutting down", Fault.GROUP),
        ("PyExecutor has already been shutdown.", Fault.GROUP),
        ("tensorrt_llm failed: RuntimeError: Executor worker died during initialization", Fault.GROUP),
        ("the LLM API has ended this request, and the rest of the answer is lost. Send the request again", Fault.STEP),
    ],
)
def test_what_an_error_before_the_first_token_means(message, fault):
    assert fault_of(message, begun=False) is fault


@pytest.mark.parametrize("message", QUOTED)
@pytest.mark.parametrize("begun", [False, True])
def test_the_words_of_a_user_that_an_error_quotes_do_not_decide(message, begun):
    assert fault_of(message, begun) is (Fault.STEP if begun else Fault.REQUEST)


def test_an_error_that_quotes_something_keeps_its_meaning():
    assert fault_of("model 'a' failed: NCCL error in 'b.cpp': 'unhandled'", begun=False) is Fault.GROUP
    assert fault_of("rank 3's buffer can't be had: failed to allocate, it isn't there", begun=False) is Fault.GROUP
    assert (
        fault_of("in ensemble 'ensemble', [request id: 7] Maximum queue size of 4 has been reached", False)
        is Fault.BUSY
    )


def test_an_unknown_error_after_a_token_is_not_the_request_s_own():
    assert fault_of("something new", begun=False) is Fault.REQUEST
    assert fault_of("something new", begun=True) is Fault.STEP
