"""The PyTorch twin of a deployment with engines: the same YAML but for its engine, and what becomes of each setting.

NVIDIA removed engines after TensorRT-LLM 1.3.0rc20; the LLM API, which loads the model itself, is what goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.edit_yaml import edited
from toolkit.config.engine_kind import PYTORCH
from toolkit.errors import ToolkitError, printable
from toolkit.files.atomic import read_text, write_text
from toolkit.files.yaml_file import parse_yaml

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

FIRST = "1.0"
"""The first release whose LLM API is stable."""
BUILT_IN = "always so: its kernels and its KV cache are made for batches in flight"
OF_BUILDING = ("checkpoint_dir", "output_dir", "workers", "input_timing_cache", "output_timing_cache")
FLAGS = {
    "max_batch_size": "max_batch_size",
    "max_num_tokens": "max_num_tokens",
    "max_seq_len": "max_seq_len",
    "max_beam_width": "max_beam_width",
    "tokens_per_block": "kv_cache_config.tokens_per_block",
}
"""Flags of trtllm-build by the arguments of the LLM API that take their place."""
ALWAYS = ("kv_cache_type", "remove_input_padding", "use_paged_context_fmha", "context_fmha", "gpt_attention_plugin")
NONE = {
    "gemm_plugin": "its autotuner chooses kernels when it starts (enable_autotuner)",
    "nccl_plugin": "allreduce_strategy AUTO chooses, NCCL among others",
    "multiple_profiles": "no shapes are compiled; decoding replays CUDA graphs (cuda_graph_config)",
    "reduce_fusion": "it fuses all-reduce and norm by itself where its all-reduce can",
    "log_level": "TLLM_LOG_LEVEL in the environment",
}
PARAMETERS = {
    "batch_scheduler_policy": "scheduler_config.capacity_scheduler_policy",
    "enable_chunked_context": "enable_chunked_prefill",
    "enable_kv_cache_reuse": "kv_cache_config.enable_block_reuse",
    "kv_cache_free_gpu_mem_fraction": "kv_cache_config.free_gpu_memory_fraction",
    "max_tokens_in_paged_kv_cache": "kv_cache_config.max_tokens",
}
"""Parameters of the backend for engines that have an argument of the LLM API."""
WITHOUT = (
    ("decoding_mode", "a request's own top_k and top_p decide"),
    ("multi_block_mode, enable_context_fmha_fp32_acc", "its attention kernels choose"),
    ("cuda_graph_mode", "cuda_graph_config, on here: without an engine every launch is the host's"),
    ("normalize_log_probs", "log probabilities are of tokens, and nothing searches beams"),
    ("beam_width above 1, embedding_bias, lora_*, guided_decoding_*, return_*_logits", "refused, in one line each"),
    ("serving.mode", "one server starts the ranks always"),
)
"""Settings that are not flags: (setting, what replaces it)."""


@dataclass(frozen=True)
class Change:
    """What replaces a setting. `twin` is the argument of the LLM API with its value, None where there is none."""

    setting: str
    twin: str | None
    why: str


@dataclass(frozen=True)
class Twin:
    """The YAML of the PyTorch twin, and what changed."""

    file: Path
    text: str
    changes: tuple[Change, ...]


def twin_of(deployment: Deployment, file: Path | None = None) -> Twin:
    """The twin as it would be written.

    Raises ToolkitError where the deployment has no engines, or asks for something that the LLM API cannot do.
    """
    from toolkit.repository.llm_args import check_llm_args

    source = Path(deployment.file)
    if not deployment.kind.vendor_build:
        what = f"engine: is {deployment.engine}, expected tensorrt"
        raise ToolkitError(what, where=source, hint="Give a deployment with engines, or add: --engine tensorrt")
    file = file or source.with_name(f"{source.stem}-pytorch{source.suffix}")
    if file.resolve() == source.resolve():
        raise ToolkitError("is the deployment itself", where=file, hint="Give the twin another name.")
    twin = deployment.model_copy(update={"engine": PYTORCH.name, "engine_options": _options(deployment)})
    check_llm_args(twin)
    return Twin(file, _text(deployment, twin), tuple(_changes(deployment, twin)))


def migrate(twin: Twin) -> bool:
    """Write the twin's file. Returns True if it was written now. Raises ToolkitError if another file has this name."""
    if twin.file.exists():
        if twin.file.read_text(encoding="utf-8", errors="replace") == twin.text:
            return False
        raise ToolkitError("exists already and is not this twin", where=twin.file, hint="Give another: --output FILE")
    write_text(twin.file, twin.text)
    return True


def _text(deployment: Deployment, twin: Deployment) -> str:
    """The YAML with another engine, name and output. Everything else stays, with its comments."""
    source = Path(deployment.file)
    text = read_text(source)
    content = parse_yaml(text)
    changes: dict[str, Any] = {"engine": {"kind": PYTORCH.name, "version": twin.engine_options.version}}
    if "name" in content:
        changes["name"] = f"{deployment.name}-pytorch"
    if "output" in content:
        changes["output"] = f"{content['output'].rstrip('/')}-pytorch"
    head = f"# The PyTorch twin of {printable(source.name)}, by toolkit migrate: no engines, all else the same."
    return f"{head}\n{edited(text, changes)}"


def _changes(deployment: Deployment, twin: Deployment) -> Iterator[Change]:
    from toolkit.engine.tensorrt.flags import derive
    from toolkit.repository.llm_args import llm_args
    from toolkit.repository.parameters import tensorrt_llm

    values = {argument.name: argument.value for argument in llm_args(twin)}
    for flag in derive(deployment):
        argument, setting = FLAGS.get(flag.name), f"--{flag.name} {flag.value or ''}".rstrip()
        if argument is not None and argument in values:
            yield Change(setting, f"{argument}: {values[argument]}", "")
        elif flag.name not in (*OF_BUILDING, *ALWAYS):
            unknown = "the LLM API has no known argument for this"
            yield Change(setting, None, NONE.get(flag.name, unknown))
    yield Change(", ".join(f"--{name}" for name in ALWAYS), None, BUILT_IN)
    yield Change(", ".join(f"--{name}" for name in OF_BUILDING), None, "nothing is converted or built")
    backend = tensorrt_llm(deployment, deployment.engine_dir)
    for name, argument in PARAMETERS.items():
        yield Change(f"{name} {backend[name]}", f"{argument}: {values[argument]}", "")
    for setting, why in WITHOUT:
        yield Change(setting, None, why)


def _options(deployment: Deployment) -> Any:
    """The engine options of the twin. Flags of trtllm-build are not arguments of the LLM API, so they are left out."""
    options = deployment.engine_options
    fresh = type(options)()
    version = fresh.version if deployment.release.name < FIRST else options.version
    return options.model_copy(update={"version": version, "extra": {}, "workers": None})


def as_text(twin: Twin) -> str:
    """Two lists: settings that continue under another name, and settings without an equivalent."""
    kept = [change for change in twin.changes if change.twin is not None]
    gone = [change for change in twin.changes if change.twin is None]
    width = max(len(change.setting) for change in kept)
    return "\n".join(
        [
            "goes on",
            *(f"  {change.setting:<{width}}  {change.twin}" for change in kept),
            "",
            "has no equivalent",
            *(f"  {change.setting}\n      {change.why}" for change in gone),
        ]
    )
