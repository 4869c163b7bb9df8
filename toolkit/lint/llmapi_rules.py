"""Rules for models that generate with the LLM API, without an engine: their model.yaml and their config.pbtxt."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import shown
from toolkit.lint.executor_rules import cache_memory
from toolkit.lint.finding import Effect, Finding
from toolkit.lint.model_yaml import OURS_ONLY, PLACEHOLDER, TRITON, ModelYaml
from toolkit.lint.repository import LlmModel, Repository
from toolkit.releases.llm_api import BEFORE_1_0, RELEASES, SECTIONS, UNCHECKED_ARGUMENTS, llm_arguments
from toolkit.releases.release import WITHOUT_ENGINES, Release

REQUIRED = ("decoupled", "max_batch_size")
"""The keys of triton_config that NVIDIA's model needs."""
LISTS: dict[str, tuple[type, str]] = {
    "eos_token_ids": (int, "a list of whole numbers"),
    "ignored_by_sampler": (str, "a list of names"),
}
"""Lists in triton_config: what they hold, and that in words."""
BACKENDS = ("pytorch", "_autodeploy")
NO_FOLDER = "no such directory"


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find mistakes in the models of the LLM API."""
    for llm in repository.llm_models:
        yield from _tensors(llm)
        if llm.yaml.problem:
            yield llm.yaml.problem
            continue
        yield from _placeholders(llm.yaml)
        yield from _model(llm.yaml)
        if release.name in RELEASES:
            yield from _arguments(llm.yaml, release.name)
        yield from _surprises(llm.yaml)
        yield from _triton_config(llm)
    yield from _renamed_inputs(repository)


def _tensors(llm: LlmModel) -> Iterator[Finding]:
    fix = "Add it; a model of the LLM API has texts."
    if "text_input" not in {tensor.name for tensor in llm.config.input}:
        yield llm.model.finding("tensor-missing", "answers", "text_input is missing", fix)
    if "text_output" not in {tensor.name for tensor in llm.config.output}:
        yield llm.model.finding("tensor-missing", "start", "text_output is missing", fix)


def _placeholders(yaml: ModelYaml) -> Iterator[Finding]:
    for number, line in enumerate(yaml.text.splitlines(), 1):
        for name in PLACEHOLDER.findall(re.split(r"(?:^|\s)#", line)[0]):
            what = f"${{{name}}} was not filled"
            yield Finding("placeholder", "start", yaml.path, what, "Fill it: LLM() gets it as it is.", number)


def _model(yaml: ModelYaml) -> Iterator[Finding]:
    model = yaml.given.get("model")
    if model is None or model == "":
        yield yaml.finding("model-path", "start", "model is missing", "Name the Hugging Face model.", at="model")
    if not isinstance(model, str) or not model or PLACEHOLDER.search(model):
        return
    problem = _no_model(Path(model))
    if problem == NO_FOLDER and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):
        what = f"model {model} is not a directory here, so it is taken for a name and downloaded at the start"
        yield yaml.finding("model-path", "default", what, "Download it first, and give its directory.", at="model")
    elif problem:
        fix = "Give the directory of the Hugging Face model, or run lint where it is."
        yield yaml.finding("model-path", "start", f"model {model}: {problem}", fix, at="model")


def _no_model(folder: Path) -> str | None:
    try:
        if not folder.is_dir():
            return NO_FOLDER
        return None if (folder / "config.json").is_file() else "has no config.json"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _arguments(yaml: ModelYaml, release: str) -> Iterator[Finding]:
    known = llm_arguments(release)
    for name, value in yaml.given.items():
        if _unfilled(value):
            continue
        if name in SECTIONS:
            what = f"{name}: expected a section of keys, got {shown(value)}"
            yield yaml.finding("argument-value", "start", what, "Correct it.", at=name)
        elif name == "backend":
            yield from _backend(yaml, value)
        elif name in UNCHECKED_ARGUMENTS and name not in known:
            continue
        elif name in known:
            if problem := known[name].problem(value):
                yield yaml.finding("argument-value", "start", f"{name}: {problem}", "Correct it.", at=name)
        else:
            yield _unknown(yaml, name, release, [*known, *SECTIONS])


def _unknown(yaml: ModelYaml, name: str, release: str, known: list[str]) -> Finding:
    if name == BEFORE_1_0:
        fix = "Give its keys at the top level, for example cuda_graph_config."
    else:
        close = difflib.get_close_matches(name, [*known, *UNCHECKED_ARGUMENTS], n=1)
        fix = f"Did you mean {close[0]}?" if close else "Remove it; toolkit/releases/llm_api.py lists them."
    what = f"{name} is not an argument of LLM() in {release}, which refuses unknown arguments"
    return yaml.finding("argument-unknown", "start", what, fix, at=name)


def _backend(yaml: ModelYaml, value: Any) -> Iterator[Finding]:
    if value == "tensorrt":
        what = f"backend tensorrt: LLM() runs on PyTorch, and from {WITHOUT_ENGINES.name} on there is no other backend"
        yield yaml.finding("argument-value", "start", what, "Use pytorch.", at="backend")
    elif value not in BACKENDS:
        what = f"backend: expected {' or '.join(BACKENDS)}, got {shown(value)}"
        yield yaml.finding("argument-value", "start", what, "Use pytorch.", at="backend")


def _surprises(yaml: ModelYaml) -> Iterator[Finding]:
    """Values that are allowed and have an effect that few expect."""
    given, cache = yaml.given, "kv_cache_config"
    if f"{cache}.enable_block_reuse" not in given:
        what = f"{cache}.enable_block_reuse is not set, so the LLM API reuses KV blocks"
        yield yaml.finding("kv-reuse-unset", "default", what, "Set true or false.", at=f"{cache}.enable_block_reuse")
    name = f"{cache}.free_gpu_memory_fraction"
    if not _unfilled(given.get(name)) and f"{cache}.max_tokens" not in given:
        for what, fix in cache_memory(name, str(given.get(name, ""))):
            yield yaml.finding("kv-fraction", "default", what, fix, at=name)
    tokens, longest = given.get("max_num_tokens", 8192), given.get("max_seq_len")
    numbers = isinstance(tokens, int) and isinstance(longest, int)
    if numbers and tokens < longest and given.get("enable_chunked_prefill", False) is False:
        what = f"enable_chunked_prefill is off: a prompt longer than max_num_tokens {tokens} is refused, "
        what += f"but max_seq_len is {longest}"
        yield yaml.finding("chunked-context", "default", what, "Set it to true.", at="enable_chunked_prefill")
    if given.get("trust_remote_code") is True:
        what = "trust_remote_code is true: Python files from the model's folder run in the server"
        yield yaml.finding(
            "remote-code", "default", what, "Set it to false: a Llama has no such files.", at="trust_remote_code"
        )


def _triton_config(llm: LlmModel) -> Iterator[Finding]:
    yaml, values = llm.yaml, llm.yaml.triton
    if values is None:
        if not _unfilled(yaml.content.get(TRITON)):
            given = yaml.content.get(TRITON)
            problem = "is missing" if given is None else f"is not a section of keys: {shown(given)}"
            what = f"{TRITON} {problem}; the model does not start without it"
            yield yaml.finding("triton-config", "start", what, f"Add it with {', '.join(REQUIRED)}.", at=TRITON)
        return
    names = (*sorted(OURS_ONLY), "cancellation_check_period_ms") if yaml.ours else REQUIRED
    for name in (name for name in names if name not in values):
        what = f"{TRITON}.{name} is missing; the model does not start without it"
        yield yaml.finding("triton-config", "start", what, "Add it.", at=TRITON)
    for name, value in values.items():
        if not _unfilled(value) and (expected := _expected(name, value, yaml.ours)):
            what = f"{TRITON}.{name}: expected {expected}, got {shown(value)}"
            yield yaml.finding("triton-config", "start", what, "Correct it.", at=f"{TRITON}.{name}")
    yield from _policy(llm, values.get("decoupled"))
    yield from _batch(llm, values.get("max_batch_size"))


def _expected(name: str, value: Any, ours: bool) -> str | None:
    """What a value of triton_config should be; None if it is right. NVIDIA's model takes any text for true, and a
    number in quotes for a number; ours does not."""
    if name == "decoupled":
        return None if isinstance(value, int) else "true or false without quotes"
    if name in LISTS:
        kind, words = LISTS[name]
        return None if isinstance(value, list) and all(type(entry) is kind for entry in value) else words
    if name in ("max_batch_size", "cancellation_check_period_ms", *OURS_ONLY):
        quoted = isinstance(value, str) and value.isdecimal() and not ours
        return None if quoted or (type(value) is int and value >= 0) else "a whole number of at least 0"
    return None


def _policy(llm: LlmModel, decoupled: Any) -> Iterator[Finding]:
    config, yaml, at = llm.config, llm.yaml, f"{TRITON}.decoupled"
    policy = config.model_transaction_policy.decoupled
    says = config.HasField("model_transaction_policy") or yaml.ours
    if isinstance(decoupled, int) and says and bool(decoupled) != policy:
        what = f"{at} is {json.dumps(bool(decoupled))}, but {llm.model.path.name} says {json.dumps(policy)}"
        yield _differs(yaml, what, at)


def _differs(yaml: ModelYaml, what: str, at: str) -> Finding:
    """A finding about a value that differs. NVIDIA's model hands it to Triton, which refuses a value other than the
    one in config.pbtxt."""
    effect: Effect = "default" if yaml.ours else "start"
    takes = ": the model uses config.pbtxt" if yaml.ours else ""
    return yaml.finding("triton-config", effect, f"{what}{takes}", "Make them the same.", at=at)


def _batch(llm: LlmModel, size: Any) -> Iterator[Finding]:
    yaml, most, at = llm.yaml, llm.config.max_batch_size, f"{TRITON}.max_batch_size"
    if type(size) is not int or size < 0:
        return
    if size != most if yaml.ours else size < most:
        yield _differs(yaml, f"{at} is {size}, but config.pbtxt says {most}", at)
    elif size and not yaml.ours:
        what = f"{at} is {size}: NVIDIA's model refuses requests with a batch dimension, which all requests then have"
        yield yaml.finding("triton-config", "answers", what, "Use 0.", at=at)


def _renamed_inputs(repository: Repository) -> Iterator[Finding]:
    """Our tensorrt_llm_bls passes its inputs on under the names of the model that it calls."""
    bls = repository.models.get("tensorrt_llm_bls")
    if bls is None or not (text := bls.parameters.get("renamed_inputs")):
        return
    try:
        renamed = json.loads(text)
    except (ValueError, RecursionError):
        renamed = None
    if not isinstance(renamed, dict) or not all(isinstance(name, str) for name in renamed.values()):
        what = "renamed_inputs is not a JSON object of names"
        yield bls.finding("renamed-inputs", "start", what, "Make it again: toolkit repo CONFIG.", at="renamed_inputs")
        return
    called = repository.models.get(bls.parameters.get("tensorrt_llm_model_name", ""))
    if bls.config is None or called is None or called.config is None:
        return
    has = {tensor.name for tensor in called.config.input}
    for name in (tensor.name for tensor in bls.config.input):
        if (theirs := renamed.get(name, name)) not in has:
            what = f"passes {name} on as {theirs}, but {called.name} has no such input"
            yield bls.finding("renamed-inputs", "answers", what, "Correct renamed_inputs.", at="renamed_inputs")


def _unfilled(value: Any) -> bool:
    return isinstance(value, str) and PLACEHOLDER.search(value) is not None
