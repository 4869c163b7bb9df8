"""Whether this server drains: it then refuses new requests and finishes running ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

REFUSAL = "this server is ending: send the request to another one, or again later"
_FLAG = Path(tempfile.gettempdir(), "draining")  # toolkit serve writes it into the folder of the run


def is_draining() -> bool:
    """Whether `toolkit stop` or a signal has begun the drain."""
    return "TOOLKIT_RUN_ID" in os.environ and _FLAG.exists()


def refusal() -> Any:
    """The error for a request that comes during the drain."""
    return pb_utils.TritonError(REFUSAL, pb_utils.TritonError.UNAVAILABLE)
