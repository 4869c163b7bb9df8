"""How many processes a test needs, from the rate that one process carries."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from toolkit.load.self_check import ITL_MS
from toolkit.reports.wording import carried

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.load.requests import RequestSource
    from toolkit.slo.generator_error import GeneratorError


OTHERS_CPU = 0.25
"""Cores that other programs may use before the advice mentions it."""


def requested_tokens_per_s(deployment: Deployment, source: RequestSource) -> float:
    """Output tokens/s that the test asks for.

    An open loop has them by its rate. In a closed loop no user waits for a first token, and each gets tokens as fast as
    the SLO asks.
    """
    if source.tokens_per_s is not None:
        return source.tokens_per_s
    limits = deployment.slo.percentiles("tpot_ms")
    return (source.users or 1) * 1e3 / (limits[0][1] if limits else ITL_MS)


def advice(own: GeneratorError, asked: float, processes: int) -> str:
    """One line: what a process carries, what the test asks for, and what to do if that is more."""
    if not own.tokens_per_s:
        return ""
    needed, cores = math.ceil(asked / own.tokens_per_s), os.cpu_count() or 1
    text = f"one process carries about {carried(own.tokens_per_s)} tokens/s here; this test asks for {carried(asked)}"
    if (own.others_cpu or 0.0) > OTHERS_CPU:
        text = f"other programs keep {own.others_cpu:.1f} of {cores} cores busy, so it carries less: {text}"
    if needed <= processes:
        return text
    if needed <= cores:
        return f"{text}: use --processes {needed}"
    more = f"{needed} workers, and this machine has {cores} cores: use others too (docs/how-to/load-machines.md)"
    return f"{text}, which needs {more}"
