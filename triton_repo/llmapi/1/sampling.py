"""Turns the tensors of a request into arguments of the LLM API."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (argument of SamplingParams, input of this model)
ARGUMENTS = (
    ("max_tokens", "sampling_param_max_tokens"),
    ("min_tokens", "min_tokens"),
    ("n", "num_return_sequences"),
    ("temperature", "sampling_param_temperature"),
    ("top_k", "sampling_param_top_k"),
    ("top_p", "sampling_param_top_p"),
    ("seed", "sampling_param_seed"),
    ("repetition_penalty", "repetition_penalty"),
    ("presence_penalty", "sampling_param_presence_penalty"),
    ("frequency_penalty", "sampling_param_frequency_penalty"),
    ("length_penalty", "length_penalty"),
    ("return_perf_metrics", "sampling_param_return_perf_metrics"),
)
WORDS = (("stop", "sampling_param_stop"), ("bad", "bad_words"))
ONE = ("beam_width", "sampling_param_best_of")
NOT_SERVED = (
    *("decoder_text_input", "embedding_bias_words", "embedding_bias_weights", "prompt_embedding_table"),
    *("prompt_vocab_size", "prompt_table_extra_id", "lora_task_id", "lora_weights", "lora_config"),
    *("guided_decoding_guide_type", "guided_decoding_guide", "return_context_logits", "return_generation_logits"),
)
"""Inputs that change the answer and are not passed to the LLM API."""
WITHOUT_EFFECT = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "bad": []}
"""Values that change nothing."""


class Refused(Exception):
    """A request that cannot be answered. The message is one line."""


@dataclass
class Question:
    """A prompt and how to continue it. `arguments` are those of SamplingParams, except for the end of the answer."""

    prompt: str
    """Empty where the prompt came as token ids."""
    streaming: bool
    arguments: dict[str, Any]
    end_id: int | None
    flags: set[str] = field(default_factory=set)
    """Names of the inputs that ask for further outputs."""
    prompt_ids: list[int] | None = None
    """The prompt as token ids: then the answer is token ids, too."""
    stop_token_ids: list[int] = field(default_factory=list)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, NDArray[Any]], ignored: Iterable[str] = ()) -> "Question":
        """Read arrays by name, each with a batch dimension of 1. Empty arrays count as missing. Raises Refused.

        `ignored` are the arguments that the LLM API takes and its sampler does not apply.
        """
        arrays = {name: array for name, array in tensors.items() if array.size}
        for name in NOT_SERVED:
            if name in arrays and any(arrays[name].flat):
                raise Refused(f"{name}: is not supported with engine: pytorch")
        for name in ONE:
            if _one(arrays, name, 1) != 1:
                raise Refused(f"{name}: expected 1, got {_one(arrays, name, 1)}")
        if ("text_input" in arrays) == ("input_ids" in arrays):
            raise Refused("text_input: missing" if "text_input" not in arrays else "input_ids: not with text_input")
        arguments = {argument: _number(arrays, name) for argument, name in ARGUMENTS if name in arrays}
        if arguments.get("top_p", 1) <= 0:  # counts as missing, as in NVIDIA's backend for engines
            del arguments["top_p"]
        arguments |= {argument: _words(arrays[name]) for argument, name in WORDS if name in arrays}
        if arguments.get("max_tokens", 0) < 1:
            raise Refused(f"max_tokens: expected 1 or more, got {arguments.get('max_tokens')}")
        # As with engines: greedy, unless top_k or top_p asks for sampling.
        if arguments.get("top_k", 0) <= 1 and not 0 < arguments.get("top_p", 0) <= 1:
            arguments["top_k"] = 1
        _check_applied(arguments, ignored)
        end_id, stop_token_ids = _one(arrays, "end_id"), arrays.get("stop_token_ids", np.empty(0)).ravel().tolist()
        if end_id is not None and end_id < 0 and (stop_token_ids or arguments.get("stop")):
            which = "stop_token_ids" if stop_token_ids else "sampling_param_stop"
            raise Refused(f"{which}: not with end_id {end_id}: the LLM API then takes no stop words either")
        return cls(
            prompt=_text(arrays, "text_input") if "text_input" in arrays else "",
            prompt_ids=arrays["input_ids"].ravel().tolist() if "input_ids" in arrays else None,
            stop_token_ids=stop_token_ids,
            streaming=bool(_one(arrays, "streaming", False)),
            arguments=arguments,
            end_id=end_id,
            flags={name for name, array in arrays.items() if name.startswith("return_") and array.flat[0]}
            | ({"echo"} if _one(arrays, "sampling_param_exclude_input_from_output", True) is False else set()),
        )

    def check_one_response(self) -> None:
        """Raise Refused for a request that a model without decoupled mode cannot answer."""
        if self.streaming:
            raise Refused("streaming: Streaming is only supported in decoupled mode. Set serving.decoupled: true.")
        if self.arguments.get("n", 1) > 1:
            raise Refused("num_return_sequences: above 1 needs a decoupled model. Set serving.decoupled: true.")

    def sampling(self, eos_token_ids: Iterable[int]) -> dict[str, Any]:
        """All arguments of SamplingParams. `eos_token_ids` are the ids that end an answer of the model."""
        arguments = {
            **self.arguments,
            "detokenize": True,
            "include_stop_str_in_output": True,  # as NVIDIA's backend for engines does
        }
        if "return_log_probs" in self.flags:
            arguments["logprobs"] = 1
        ends = [*(eos_token_ids if self.end_id is None else ()), *self.stop_token_ids]
        if ends:
            arguments["stop_token_ids"] = list(dict.fromkeys(ends))
        if self.end_id is not None:
            arguments |= {"ignore_eos": True} if self.end_id < 0 else {"end_id": self.end_id}
        if arguments.get(
            "ignore_eos"
        ):  # nothing is left to keep back; TorchSampler of 1.2 would keep back another token
            arguments.pop("min_tokens", None)
        return arguments


def _check_applied(arguments: Mapping[str, Any], ignored: Iterable[str]) -> None:
    """Raise Refused for an argument that would have no effect. A greedy answer is the same with any seed."""
    greedy = arguments.get("top_k") == 1 or arguments.get("temperature") == 0
    for name in ignored:
        if name in arguments and arguments[name] != WITHOUT_EFFECT.get(name) and not (name == "seed" and greedy):
            what = "the sampler of this TensorRT-LLM does not apply it; its operator can choose another sampler_type"
            raise Refused(f"{dict((*ARGUMENTS, *WORDS))[name]}: {what}")


def check_sizes(tensors: Mapping[str, NDArray[Any]], max_seq_len: int, longest_token_bytes: int) -> None:
    """Raise Refused for texts with more bytes than `max_seq_len` tokens can have.

    Checks the sizes only, because tokenising a huge text takes long.
    """
    most = max_seq_len * longest_token_bytes
    for name in ("text_input", *(name for _, name in WORDS)):
        size = sum(map(len, tensors[name].flat)) if name in tensors else 0
        if size > most:
            what = f"max_seq_len {max_seq_len} times the {longest_token_bytes} bytes of the longest token"
            raise Refused(f"{name}: has {size} bytes, expected at most {most}, {what}")


def _one(arrays: Mapping[str, NDArray[Any]], name: str, default: Any = None) -> Any:
    if name not in arrays:
        return default
    if arrays[name].size != 1:
        raise Refused(f"{name}: expected one value, got shape {list(arrays[name].shape)}")
    return arrays[name].item()


def _number(arrays: Mapping[str, NDArray[Any]], name: str) -> Any:
    """The value of a number. Raises Refused for NaN, which the LLM API accepts."""
    value = _one(arrays, name)
    if not math.isfinite(value) and (name, value) != ("sampling_param_top_p", -math.inf):
        raise Refused(f"{name}: expected a finite number, got {value}")
    return value


def _text(arrays: Mapping[str, NDArray[Any]], name: str) -> str:
    try:
        return bytes(_one(arrays, name)).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{name}: is not UTF-8") from None


def _words(array: NDArray[Any]) -> list[str]:
    return [word.decode("utf-8", "replace") for word in array.flat if word]
