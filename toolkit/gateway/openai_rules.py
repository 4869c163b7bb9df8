"""Which requests of OpenAI's API the door accepts. A parameter that nothing behind the door supports is refused.

The front end drops unknown parameters and answers 200, so the gate checks the original request first.
Names: https://platform.openai.com/docs/api-reference/chat/create and /completions/create. vLLM and trtllm-serve have
top_k, min_tokens, ignore_eos, repetition_penalty and stop_token_ids as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import clipped

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_BOTH = {
    *("model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "min_tokens"),
    *("ignore_eos", "presence_penalty", "frequency_penalty", "repetition_penalty", "stream", "stream_options"),
    *("n", "logprobs", "logit_bias", "user", "nvext"),
}
NVEXT = {"annotations", "extra_fields", "use_raw_prompt"}
"""What Dynamo's own extension `nvext` may hold. The rest asks for a certain replica, or is ignored."""
_NO_EFFECT_ON_THE_ANSWER = {"metadata", "service_tier", "safety_identifier", "prompt_cache_key", "store"}
KNOWN = {
    CHAT: _BOTH
    | _NO_EFFECT_ON_THE_ANSWER
    | {"messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice"}
    | {"parallel_tool_calls", "chat_template_kwargs"},
    COMPLETIONS: _BOTH | {"prompt", "best_of", "echo", "suffix"},
}


@dataclass(frozen=True)
class Abilities:
    """What this deployment can do beyond plain text."""

    model: str
    tools: bool = False


@dataclass(frozen=True)
class Refusal:
    """An answer in OpenAI's form."""

    status: int
    message: str
    parameter: str | None = None

    def body(self) -> dict[str, Any]:
        """For JSON."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        error = {
            "message": self.message,
            "type": kind.get(self.status, "invalid_request_error"),
            "param": self.parameter,
            "code": self.status,
        }
        return {"error": error}


def refusal(path: str, body: object, abilities: Abilities) -> Refusal | None:
    """Why a request to CHAT or COMPLETIONS is refused; None if it is accepted."""
    if not isinstance(body, dict):
        return Refusal(400, "the body is not a JSON object")
    model = body.get("model")
    if model != abilities.model:
        what = f"the model {clipped(str(model), 100)} does not exist; this is {abilities.model}"
        return Refusal(404, what, "model")
    known = KNOWN[path]
    for name in body:
        if name not in known and body[name] is not None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return Refusal(400, f"{clipped(name, 100)}: unknown parameter{hint}", clipped(name, 100))
    for name, why in _RULES.items():
        if (problem := why(body, abilities)) is not None:
            return Refusal(400, f"{name}: {problem}", name)
    return None


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _one(name: str) -> Callable[[Mapping[str, Any], Abilities], str | None]:
    def problem(body: Mapping[str, Any], _: Abilities) -> str | None:
        value = body.get(name)
        return f"this server gives one answer to a request; send {value} requests" if _number(value) > 1 else None

    return problem


def _logit_bias(body: Mapping[str, Any], _: Abilities) -> str | None:
    if not body.get("logit_bias"):
        return None
    return "not with this API; Triton's own takes embedding_bias_words and embedding_bias_weights"


def _top_logprobs(body: Mapping[str, Any], _: Abilities) -> str | None:
    """The engine gives the log-probability of the chosen token, which is the likeliest only if the answer is greedy."""
    asked = max(_number(body.get("top_logprobs")), _number(body.get("logprobs")))
    if asked > 1 or (asked == 1 and body.get("temperature") != 0):
        return "the engine gives the log-probability of the chosen token only; leave it out, or ask for 0"
    return None


def _response_format(body: Mapping[str, Any], _: Abilities) -> str | None:
    form = body.get("response_format")
    if form is None or (isinstance(form, dict) and form.get("type") == "text"):
        return None
    return 'this deployment has no guided decoding; only {"type": "text"} is taken'


def _tools(body: Mapping[str, Any], abilities: Abilities) -> str | None:
    if abilities.tools or not body.get("tools"):
        return None
    return "this deployment does not know how its model writes tool calls (gateway.tool_parser)"


def _ignore_eos(body: Mapping[str, Any], _: Abilities) -> str | None:
    """The front end drops all other ends of such a request."""
    others = [name for name in ("stop", "stop_token_ids") if body.get(name)]
    return f"not together with {others[0]}, which would be ignored" if body.get("ignore_eos") and others else None


def _nvext(body: Mapping[str, Any], _: Abilities) -> str | None:
    extension = body.get("nvext") or {}
    if not isinstance(extension, dict):
        return "not a JSON object"
    others = sorted(name for name in extension if name not in NVEXT and extension[name] is not None)
    return f"{clipped(others[0], 100)} is not taken; {', '.join(sorted(NVEXT))} are" if others else None


def _absent(name: str, why: str) -> Callable[[Mapping[str, Any], Abilities], str | None]:
    return lambda body, _: why if body.get(name) else None


_RULES: dict[str, Callable[[Mapping[str, Any], Abilities], str | None]] = {
    "n": _one("n"),
    "best_of": _one("best_of"),
    "logit_bias": _logit_bias,
    "logprobs": _top_logprobs,
    "response_format": _response_format,
    "tools": _tools,
    "echo": _absent("echo", "the engine gives no log-probabilities of the prompt, and the prompt is not sent back"),
    "suffix": _absent("suffix", "the model cannot fill in text before a suffix"),
    "ignore_eos": _ignore_eos,
    "nvext": _nvext,
    "store": _absent("store", "nothing is stored"),
}
