"""Errors for clients, one line each. The traceback of an internal error goes to the server's log."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

import triton_python_backend_utils as pb_utils


def fault_of_ours(model: str, fault: Exception) -> Any:
    """The TritonError for an internal error. Logs its traceback."""
    pb_utils.Logger.log_error("".join(traceback.format_exception(fault)))
    text = " ".join(str(fault).split())
    return pb_utils.TritonError(f"{model} failed: {type(fault).__name__}: {text}")


def respond_to_each(model: str, respond: Callable[[Any], Any], requests: Iterable[Any]) -> list[Any]:
    """Call `respond` for each request. An exception becomes the error response of that request only."""
    responses = []
    for request in requests:
        try:
            responses.append(respond(request))
        except Exception as fault:
            responses.append(pb_utils.InferenceResponse(error=fault_of_ours(model, fault)))
    return responses
