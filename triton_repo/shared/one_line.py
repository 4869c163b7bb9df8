"""Errors for clients: one line each. What a fault of ours needs beyond that goes to the server's log."""

import traceback

import triton_python_backend_utils as pb_utils


def fault_of_ours(model, fault):
    """The TritonError for an exception that no client caused; its traceback is logged."""
    pb_utils.Logger.log_error("".join(traceback.format_exception(fault)))
    text = " ".join(str(fault).split())
    return pb_utils.TritonError(f"{model} failed: {type(fault).__name__}: {text}")


def respond_to_each(model, respond, requests):
    """`respond(request)` for each; an exception in one becomes its error response and spares the others."""
    responses = []
    for request in requests:
        try:
            responses.append(respond(request))
        except Exception as fault:
            responses.append(pb_utils.InferenceResponse(error=fault_of_ours(model, fault)))
    return responses
