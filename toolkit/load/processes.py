"""How many processes a test wants, by what one of them carries."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from toolkit.load.self_check import ITL_MS
from toolkit.reports.wording import carried

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.load.requests import Work
    from toolkit.slo.generator_error import GeneratorError


OTHERS_CPU = 0.25
"""Cores: less is what any machine does beside."""


def asked_tokens_per_s(deployment: Deployment, work: Work) -> float:
    """Output tokens/s that the test will ask for: of an open loop the rate says it, and else the users, when none of
    them waits for a first token and each has tokens as fast as the SLO wants them."""
    if work.tokens_per_s is not None:
        return work.tokens_per_s
    limits = deployment.slo.percentiles("tpot_ms")
    return (work.users or 1) * 1e3 / (limits[0][1] if limits else ITL_MS)


def advice(own: GeneratorError, asked: float, processes: int) -> str:
    """What one process carries and what the test asks for, in a line, and what to do where that is more."""
    if not own.tokens_per_s:
        return ""
    needed, cores = math.ceil(asked / own.tokens_per_s), os.cpu_count() or 1
    text = f"one process carries about {carried(own.tokens_per_s)} tokens/s here; this test asks for {carried(asked)}"
    if (own.others_cpu or 0.0) > OTHERS_CPU:
        text = f"other programs keep {own.others_cpu:.1f} of {cores} cores busy, so it will be less: {text}"
    if needed <= processes:
        return text
    if needed <= cores:
        return f"{text}: use --processes {needed}"
    more = f"{needed} workers, and this machine has {cores} cores: use others too (docs/how-to/load-machines.md)"
    return f"{text}, which wants {more}"
