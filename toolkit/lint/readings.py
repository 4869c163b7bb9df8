"""How each program reads the text of a parameter, and the effect of a bad value.

The C++ backend reads numbers as std::stoi, std::stoull and std::stof do: it takes the longest beginning that is a
number. Without one it writes a warning and takes its default (model_state.cc, model_instance_state.cc). The executor
then aborts on some numbers (kvCacheConfig.cpp, executorConfig.cpp).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from toolkit.errors import shown
from toolkit.lint.finding import Effect
from toolkit.releases.setting import INT32_MAX, SIZE_MAX, Setting

Judge = Callable[[Setting, str], tuple[Effect, str] | None]
"""(effect, what is wrong) for the text of a parameter; None if it is good."""

ENDS = {
    *("max_beam_width", "max_tokens_in_paged_kv_cache", "max_attention_window_size", "sink_token_length"),
    *("kv_cache_free_gpu_mem_fraction", "cross_kv_cache_fraction", "kv_cache_host_memory_bytes"),
    *("iter_stats_max_iterations", "request_stats_max_iterations"),
}
"""Parameters with which the executor aborts if the number is out of range."""
STOPS = {"gpt_model_type", "gpt_model_path"}
"""Parameters that the backend needs to start: they may not be missing or an unfilled template."""
FLOAT_MAX = 3.4028235e38
FLOAT = re.compile(r"\s*[+-]?(?:inf(?:inity)?|nan|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.IGNORECASE | re.ASCII)
LONGEST_NUMBER = 400
"""Characters. No C++ type holds a longer number, and Python refuses to read one of 4300 digits."""
INTEGER = re.compile(r"\s*[+-]?\d+", re.ASCII)


def backend(setting: Setting, text: str) -> tuple[Effect, str] | None:
    """How the tensorrtllm backend reads a value: the effect and the problem, or None."""
    problem = setting.problem(text)
    if problem is None:
        return None
    if setting.name in STOPS:
        return "start", problem
    value = taken(setting, text)
    if value is None:
        default = f" ({setting.default})" if setting.default else ""
        return "default", f"{problem}: the backend warns in its log and takes its default{default}"
    if problem := setting.problem(value):
        ends = setting.name in ENDS
        return ("start", f"{problem}, and the executor aborts on it") if ends else ("default", problem)
    return None if value == re.sub(r"\s", "", text) else ("default", f"{shown(text)} is read as {value}")


def nvidias_model(setting: Setting, text: str) -> tuple[Effect, str] | None:
    """How NVIDIA's Python models read a value."""
    problem = setting.problem(text)
    return ("default", f"{problem}: the model takes its default") if problem else None


def our_model(setting: Setting, text: str) -> tuple[Effect, str] | None:
    """How the Python models of `triton_repo/` read a value."""
    problem = setting.problem(text)
    if problem is None:
        return None
    return ("default", f"{problem}: it counts as false") if setting.kind == "words" and text else ("start", problem)


def tritons_own(setting: Setting, text: str) -> tuple[Effect, str] | None:
    """How Triton itself reads a value."""
    problem = setting.problem(text)
    return ("start", problem) if problem else None


def taken(setting: Setting, text: str) -> str | None:
    """The value that the C++ backend takes from a text; None if it takes its default."""
    if setting.kind in ("int", "none"):
        return _integer(text, unsigned=setting.high == SIZE_MAX)
    if setting.kind == "float":
        return _float(text)
    if setting.kind == "csv":
        return _numbers(text)
    if setting.kind == "groups":
        groups = [_numbers(group) for group in text.split(";") if group or text.count(";") == 0]
        read = groups[: groups.index(None)] if None in groups else groups
        return ";".join(group for group in read if group) or None
    return text if setting.kind in ("text", "path") or text in setting.choices else None


def _integer(text: str, unsigned: bool = False) -> str | None:
    if not (found := INTEGER.match(text)) or len(found[0]) > LONGEST_NUMBER:
        return None
    number = int(found[0])
    if unsigned:  # std::stoull counts -1 as 2^64 - 1
        return str(number % (SIZE_MAX + 1)) if abs(number) <= SIZE_MAX else None
    return str(number) if -INT32_MAX - 1 <= number <= INT32_MAX else None


def _float(text: str) -> str | None:
    found = FLOAT.match(text)
    if not found or FLOAT_MAX < abs(float(found[0])) < math.inf:
        return None
    return found[0].strip()


def _numbers(text: str) -> str | None:
    numbers = []
    for part in text.split(","):
        if not part.strip():
            break
        number = _integer(part)
        if number is None:
            return None
        numbers.append(number)
    return ",".join(numbers) or None
