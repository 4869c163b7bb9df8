"""Changes a deployment from the command line: NAME=VALUE, where NAME is a key of the YAML or a short name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.edit_yaml import inline
from toolkit.config.load import load_deployment
from toolkit.config.operating import Fleet
from toolkit.config.sections import (
    Hardware,
    KvCacheSection,
    Limits,
    ModelSection,
    Parallel,
    SchedulerSection,
    Section,
    Slo,
)
from toolkit.config.workload import Workload
from toolkit.errors import ToolkitError, shown
from toolkit.files.yaml_file import parse_yaml
from toolkit.sizing.gpus import GPUS

SECTIONS: dict[str, type[Section]] = {
    "parallel": Parallel,
    "limits": Limits,
    "kv_cache": KvCacheSection,
    "scheduler": SchedulerSection,
    "hardware": Hardware,
    "workload": Workload,
    "slo": Slo,
    "model": ModelSection,
    "fleet": Fleet,
}
"""The sections in which a key without a section is looked up, in this order."""
FORM = "Give NAME=VALUE, as in max_num_tokens=512 or limits.max_num_tokens=512."
DTYPES = {
    "fp8": {"model.quantization": "fp8"},
    "float16": {"model.dtype": "float16", "model.quantization": "none"},
    "bfloat16": {"model.dtype": "bfloat16", "model.quantization": "none"},
}


def load_changed(
    file: Path,
    engine: str | None = None,
    settings: Iterable[str] = (),
    gpus: int | None = None,
    any_layout: bool = False,
) -> Deployment:
    """The deployment of a YAML with changed `settings`, validated like the YAML itself. Raises ToolkitError."""
    return load_deployment(file, engine, changes_of(file, engine, settings, gpus, any_layout))


def changes_of(
    file: Path,
    engine: str | None = None,
    settings: Iterable[str] = (),
    gpus: int | None = None,
    any_layout: bool = False,
) -> dict[str, Any]:
    """The changes that settings, and another number of GPUs, make in a YAML: "section.key": value.

    With `any_layout`, a layout that needs more GPUs than there are is reset, because all layouts are compared.

    Short names: `dtype` (float16, bfloat16, or fp8 for weights and KV cache), `hardware` (a GPU of the table, with
    its memory), `max_batch_size` (per micro-batch). Raises ToolkitError for an unknown name or a bad value.
    """
    changes: dict[str, Any] = {}
    batch: int | None = None
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ToolkitError(f"--what-if: {shown(setting)} is not a setting", hint=FORM)
        value = _value(setting, text)
        if name == "max_batch_size":
            batch = _batch(setting, value)
        else:
            changes |= _changes(name, value)
    if gpus is not None:
        changes["hardware.gpus"] = gpus
        own = load_deployment(file, engine).parallel
        if any_layout and own.tp * own.pp * own.replicas > gpus:
            changes["parallel"] = {"tp": 1, "pp": 1}
    if batch is not None:
        mapping = load_deployment(file, engine, changes).parallel
        changes["limits.max_sequences"] = batch * mapping.pp * mapping.replicas
    return changes


def settings_of(deployment: Deployment, file: Path) -> list[str]:
    """NAME=VALUE for each setting in which a deployment differs from its YAML."""
    written, found = load_deployment(file, deployment.engine), []
    for section in SECTIONS:
        now, then = (getattr(one, section).model_dump(mode="json") for one in (deployment, written))
        found += [f"{section}.{key}={inline(value)}" for key, value in now.items() if value != then[key]]
    return found


def _changes(name: str, value: Any) -> dict[str, Any]:
    if name == "dtype":
        if value not in DTYPES:
            raise ToolkitError(f"--what-if dtype: {shown(value)} is unknown", hint=f"Use {', '.join(DTYPES)}.")
        return DTYPES[value]
    if name == "workload":
        return {"workload": {"trace": str(_trace(value).absolute())}}
    if name in ("hardware", "hardware.gpu", "gpu"):
        gpu = GPUS.get(value) if isinstance(value, str) else None
        if gpu is None:
            raise ToolkitError(f"{name}: {shown(value)} is unknown", hint=f"Use {', '.join(GPUS)}.")
        return {"hardware.gpu": gpu.name, "hardware.gpu_memory_gib": gpu.memory_gib}
    if "." in name:
        return {name: value}
    for section, kind in SECTIONS.items():
        if name in kind.model_fields:
            return {f"{section}.{name}": value}
    raise ToolkitError(f"--what-if {name}: no such setting", hint=f"Known: keys of {', '.join(SECTIONS)}.")


def _trace(value: Any) -> Path:
    kind, colon, file = str(value).partition(":")
    if kind != "trace" or not colon or not file:
        raise ToolkitError(f"workload: {shown(value)} is not a trace", hint="Use trace:FILE, as trace:traffic.jsonl.")
    return Path(file)


def _value(setting: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError:
        raise ToolkitError(f"--what-if: the value of {shown(setting)} is not YAML", hint=FORM) from None


def _batch(setting: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ToolkitError(f"--what-if {shown(setting)}: expected a whole number above 0")
    return value
