"""Turns a request from Dynamo into the input tensors of Triton's tensorrt_llm model. What the engine cannot do is
refused, never ignored.

Dynamo: PreprocessedRequest in lib/llm/src/protocols/common/preprocessor.rs. The tensors of engines:
toolkit.releases.tensors; those of the LLM API's model (engine: pytorch): toolkit.repository.llmapi.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import InputRefused

NO_END = -1
"""The end_id of a request that continues after an end token."""
REFUSED: dict[str, Any] = {
    "use_beam_search": "the engine is built for beam width 1",
    "length_penalty": "it acts on beams only, and the engine is built for beam width 1",
    "min_p": "the engine has no such sampling",
    "include_stop_str_in_output": "stop strings are never part of the answer",
    "guided_decoding": "this deployment has no guided decoding",
    "allowed_token_ids": "the engine has no such sampling",
    "bad_words_token_ids": "send the words as bad_words to Triton's own API",
}
"""Dynamo's sampling options that are refused, and why."""
Tensors = Iterator[tuple[str, str, list[Any]]]
"""Name, Triton type and values of each input tensor."""
_LLM_API_NAMES = {
    "runtime_top_k": "sampling_param_top_k",
    "runtime_top_p": "sampling_param_top_p",
    **{name: f"sampling_param_{name}" for name in ("temperature", "seed", "presence_penalty", "frequency_penalty")},
}
"""Names that differ between the models of an engine and of the LLM API."""


def tensors_of(deployment: Deployment) -> Callable[[Mapping[str, Any], int, bool], Tensors]:
    """What turns a request into the tensors that this deployment's model takes."""
    return tensors if deployment.kind.engine_files else llm_api_tensors


def token_budget(request: Mapping[str, Any], max_seq_len: int) -> int:
    """How many tokens the answer may have. Raises InputRefused if prompt and answer do not fit."""
    prompt, wanted = len(request["token_ids"]), request["stop_conditions"].get("max_tokens")
    room = max_seq_len - prompt
    if not prompt:
        raise InputRefused("the prompt is empty")
    if room < 1:
        raise InputRefused(f"the prompt has {prompt} tokens; this deployment takes at most {max_seq_len - 1}")
    if wanted is not None and wanted > room:
        what = (
            f"{prompt} prompt tokens and max_tokens {wanted} are more than the {max_seq_len} that this deployment has"
        )
        raise InputRefused(what, hint=f"Use max_tokens of at most {room}.")
    return room if wanted is None else max(1, wanted)


def tensors(request: Mapping[str, Any], max_seq_len: int, streaming: bool) -> Tensors:
    """The tensors for an engine. Raises InputRefused."""
    sampling, stops, ids = request["sampling_options"], request["stop_conditions"], request["token_ids"]
    _refuse(request)
    yield "input_ids", "INT32", ids
    yield "input_lengths", "INT32", [len(ids)]
    yield "request_output_len", "INT32", [token_budget(request, max_seq_len)]
    yield "streaming", "BOOL", [streaming]
    yield "exclude_input_in_output", "BOOL", [True]
    yield from _ends(stops, _end_ids(request))
    yield from _choice(sampling)
    if request["output_options"].get("logprobs") is not None:
        yield "return_log_probs", "BOOL", [True]


def llm_api_tensors(request: Mapping[str, Any], max_seq_len: int, streaming: bool) -> Tensors:
    """The tensors for the LLM API. Raises InputRefused. What its sampler ignores is refused by the model itself."""
    sampling, stops, output = request["sampling_options"], request["stop_conditions"], request["output_options"]
    _refuse(request)
    yield "input_ids", "INT32", request["token_ids"]
    yield "sampling_param_max_tokens", "INT32", [token_budget(request, max_seq_len)]
    yield "streaming", "BOOL", [streaming]
    ends = stop_ids(request)
    if stops.get("ignore_eos"):
        yield "end_id", "INT32", [NO_END]
    if ends:
        yield "stop_token_ids", "INT32", ends
    if stops.get("min_tokens"):
        yield "min_tokens", "INT32", [stops["min_tokens"]]
    for name, datatype, values in _choice(sampling):
        if (name, values) != ("runtime_top_k", [0]):  # all tokens: some releases of the sampler would take none for 0
            yield _LLM_API_NAMES.get(name, name), datatype, values
    if output.get("logprobs") is not None:
        yield "return_log_probs", "BOOL", [True]


def _choice(sampling: Mapping[str, Any]) -> Tensors:
    """How the next token is chosen. OpenAI's defaults: temperature 1 and top_p 1, which samples from all tokens."""
    temperature = sampling.get("temperature")
    if temperature == 0:
        yield "runtime_top_k", "INT32", [1]
    else:
        top_p = sampling.get("top_p")
        yield "runtime_top_k", "INT32", [max(0, sampling.get("top_k") or 0)]
        yield "runtime_top_p", "FP32", [1.0 if top_p is None else top_p]
        if temperature is not None:
            yield "temperature", "FP32", [temperature]
    if (seed := sampling.get("seed")) is not None:
        if seed < 0:
            raise InputRefused(f"seed: {seed} is negative, expected 0 or more")
        yield "seed", "UINT64", [seed]
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if sampling.get(name) is not None:
            yield name, "FP32", [sampling[name]]


def stop_ids(request: Mapping[str, Any]) -> list[int]:
    """All tokens that end the answer: the model's own, and those that the client named."""
    return [*_end_ids(request), *(request["stop_conditions"].get("stop_token_ids") or [])]


def _end_ids(request: Mapping[str, Any]) -> list[int]:
    """The model's own end tokens; none if the answer goes on after them."""
    stops = request["stop_conditions"]
    ids = [*(request.get("eos_token_ids") or []), *(stops.get("stop_token_ids_hidden") or [])]
    return [] if stops.get("ignore_eos") else list(dict.fromkeys(ids))


def _ends(stops: Mapping[str, Any], ends: list[int]) -> Tensors:
    """Where the answer ends. The engine has one end token; others are stop words of one token."""
    wanted = stops.get("stop_token_ids") or []
    yield "end_id", "INT32", [ends[0] if ends else NO_END]
    if words := [*ends[1:], *wanted]:
        yield "stop_words_list", "INT32", [*words, *range(1, len(words) + 1)]
    if stops.get("min_tokens"):
        yield "min_tokens", "INT32", [stops["min_tokens"]]


def _refuse(request: Mapping[str, Any]) -> None:
    sampling, output = request["sampling_options"], request["output_options"]
    for name, why in REFUSED.items():
        if sampling.get(name):
            raise InputRefused(f"{name}: {why}")
    for name in ("n", "best_of"):
        if (sampling.get(name) or 1) > 1:
            raise InputRefused(f"{name}: {sampling[name]} answers to one request; send {sampling[name]} requests")
    if output.get("prompt_logprobs") is not None:
        raise InputRefused("logprobs of the prompt (echo): the engine gives those of the answer only")
