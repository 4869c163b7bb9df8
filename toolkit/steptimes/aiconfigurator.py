"""Step times from NVIDIA's own measurements: the optional package aiconfigurator-core, behind the planner's interface.

The package has kernel times for whole model shapes on several GPUs, measured under TensorRT-LLM, and interpolates
between them. It knows no pipeline, so the stages are ours. So are the hops between stages, because the package takes
them to be between nodes and not over NVLink. The all-reduce of the embedding is left out: our checkpoints hold the
whole embedding on every rank.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.files.distribution import NAME, install
from toolkit.model.shape import ModelShape
from toolkit.sizing.precision import Precision
from toolkit.steptimes.latency import ClosedForm
from toolkit.steptimes.step import StepWork

PACKAGE, VERSION = "aiconfigurator-core", "0.12.0"
INSTALL = f"Install it, in an environment without {NAME}[rehearsal]: {install('aiconfigurator')}."
"""The two extras cannot be in one environment: aiconfigurator needs numpy 2, the tritonserver of rehearsal numpy 1."""
SYSTEMS = {
    "h100-sxm": ("h100_sxm", "1.3.0rc20"),
    "h200-sxm": ("h200_sxm", "1.3.0rc20"),
    "b200-sxm": ("b200_sxm", "1.3.0rc20"),
    "l40s": ("l40s", "1.3.0rc20"),
    "a100-sxm": ("a100_sxm", "1.0.0"),
}
"""The GPUs that the package has times for: its name of each, and the TensorRT-LLM release that they were measured
under."""
DENSE = (
    "add_norm_1", "qkv_gemm", "proj_gemm", "ar_1", "add_norm_2", "gate_ffn1_gemm", "act_gate", "ffn2_gemm", "ar_2",
)  # fmt: skip
"""The package's names for operations that depend only on the number of tokens, in the order of a layer."""


@dataclass(frozen=True)
class Aiconfigurator:
    """StepTimes from the package. The constructor raises ToolkitError where the package or the times are missing."""

    form: ClosedForm
    """The model, its split and the GPU; it also gives the times of hops."""
    where: Path
    """The YAML that errors name."""

    one_thread = False

    def __post_init__(self) -> None:
        if self.form.gpu.name not in SYSTEMS:
            what = f"hardware.gpu: aiconfigurator has no times for {self.form.gpu.name}"
            raise ToolkitError(
                what, where=self.where, hint=f"It has {', '.join(SYSTEMS)}. The planner's own table has every GPU."
            )
        if self.form.precision.activation_bytes != 2:
            what = "model.dtype: aiconfigurator has no times for float32"
            raise ToolkitError(what, where=self.where, hint="Use float16 or bfloat16.")
        self.stage_seconds(StepWork(16, 136, 1, 1, 16, 2))  # so that an error appears now

    @property
    def description(self) -> str:
        """Where the times come from, in words."""
        return f"{PACKAGE} {VERSION}, kernels measured under TensorRT-LLM {SYSTEMS[self.form.gpu.name][1]}"

    @property
    def stages(self) -> int:
        return self.form.stages

    def slowdown(self, in_flight: int) -> float:
        return self.form.slowdown(in_flight)

    def stage_seconds(self, work: StepWork) -> list[float]:
        layer = self.layer_s(work)
        fixed = self.form.overheads.sequence_s * (work.contexts + work.generations)
        seconds = [count * layer + fixed for count in self._layers]
        seconds[0] += self._seconds(("embedding",), 1, work.tokens)
        seconds[-1] += self._seconds(("logits_gemm",), work.emitted, 1) if work.emitted else 0.0
        return seconds

    def hops(self, work: StepWork) -> list[float]:
        return self.form.hops(work)

    def finish_seconds(self, work: StepWork) -> float:
        return self.form.finish_seconds(work)

    def layer_s(self, work: StepWork) -> float:
        """Seconds of one layer of the step on one GPU.

        The package times attention for sequences of one length, so every sequence of the step gets the mean length. A
        context of n new tokens after k others has n k + n (n + 1) / 2 pairs, a generation `keys` / `generations` keys.
        Lengths are rounded to three digits, so that a run asks for few different ones.
        """
        seconds = self._seconds(DENSE, 1, work.tokens)
        if work.contexts:
            new = work.context_tokens / work.contexts
            before = max(0.0, work.context_pairs / work.context_tokens - (new + 1) / 2)
            seconds += self._seconds(("attention",), work.contexts, max(1, _rounded(new)), _rounded(before))
        if work.generations:
            keys = max(1, _rounded(work.keys / work.generations))
            seconds += self._seconds(("attention",), work.generations, keys, generation=True)
        return seconds / self.form.shape.num_hidden_layers

    def _seconds(
        self, names: tuple[str, ...], sequences: int, tokens: int, before: int = 0, generation: bool = False
    ) -> float:
        """Seconds of the operations with these names in all layers, for sequences of `tokens` tokens after `before`
        others."""
        asked = (names, sequences, tokens, before, generation)
        if asked not in self._known:
            shape = {"batch_size": sequences, "s": tokens, "prefix": before}
            try:
                engine, index = _engine(*self._identity)
                evaluate = engine.evaluate_generation_ops if generation else engine.evaluate_context_ops
                found = evaluate([index[name] for name in names], **shape)
            except ToolkitError:
                raise
            except Exception as error:
                raise self._no_times(error) from None
            self._known[asked] = sum(operation[1] for operation in found) / 1e3  # milliseconds
        return self._known[asked]

    def _no_times(self, error: Exception) -> ToolkitError:
        what = f"aiconfigurator has no times for this model on {self.form.gpu.name}: {str(error)[:200]}"
        return ToolkitError(what, where=self.where, hint="Leave --estimator out to use the planner's own table.")

    @cached_property
    def _identity(self) -> tuple[str, str, str, int, tuple[tuple[str, str], ...]]:
        """The arguments of `_engine`. The engine itself cannot be sent to another process, these can."""
        form = self.form
        return (_config_json(form.shape), *SYSTEMS[form.gpu.name], form.mapping.tp, _modes(form.precision))

    @cached_property
    def _layers(self) -> list[int]:
        mapping, shape = self.form.mapping, self.form.shape
        return [len(mapping.layers(shape.num_hidden_layers, stage)) for stage in range(mapping.pp)]

    @cached_property
    def _known(self) -> dict[tuple[tuple[str, ...], int, int, int, bool], float]:
        return {}


@lru_cache(maxsize=16)
def _engine(
    config: str, system: str, release: str, tp: int, modes: tuple[tuple[str, str], ...]
) -> tuple[Any, dict[str, int]]:
    """The package's engine for all layers on one stage, and the place of each operation in its list. Takes half a
    second."""
    handle = _handle()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(config, encoding="utf-8")
        sizes = {"tp_size": tp, "pp_size": 1, **dict(modes)}
        engine = handle.compile(folder, system, "trtllm", backend_version=release, **sizes)
    operations = engine.run_static_per_op(batch_size=1, isl=16, osl=2)[0]
    return engine, {operation[0].removeprefix("context_"): index for index, operation in enumerate(operations)}


def _handle() -> Any:
    """The package's EngineHandle. Raises ToolkitError if the package is missing or of another release."""
    try:
        from aiconfigurator_core.sdk import EngineHandle

        found = version(PACKAGE)
    except ImportError as error:  # PackageNotFoundError too
        raise ToolkitError(f"{PACKAGE} cannot be imported: {error}", hint=INSTALL) from None
    if found != VERSION:
        raise ToolkitError(f"{PACKAGE} {found} is installed, not {VERSION}", hint=INSTALL)
    logger = logging.getLogger("aiconfigurator_core")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False  # it warns about its own defaults
    return EngineHandle


def _modes(precision: Precision) -> tuple[tuple[str, str], ...]:
    """The package's names for the precision. It has no float16, but bfloat16 takes the same time."""
    weights, keys = ("fp8" if fp8 else "bfloat16" for fp8 in (precision.fp8, precision.kv_bytes == 1))
    attention = "fp8" if weights == keys == "fp8" else "bfloat16"
    return (("gemm_quant_mode", weights), ("kvcache_quant_mode", keys), ("fmha_quant_mode", attention))


def _config_json(shape: ModelShape) -> str:
    """The fields of a config.json for this shape that the package reads."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "hidden_act", "tie_word_embeddings",
    )  # fmt: skip
    fields = {name: getattr(shape, name) for name in names}
    return json.dumps({"architectures": [shape.architecture], "model_type": "llama", **fields})


def _rounded(value: float) -> int:
    """Round to three digits."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 2) if value >= 1 else 1
    return round(value / unit) * unit
