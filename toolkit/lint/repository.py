"""Reads a Triton model repository from disk, as far as it can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, clipped
from toolkit.files.atomic import kind_of, read_text
from toolkit.files.json_file import read_json
from toolkit.lint.finding import Effect, Finding
from toolkit.lint.model_yaml import PLACEHOLDER, ModelYaml, model_yaml_of, read_model_yaml

CONFIG, LLM = "config.pbtxt", "tensorrt_llm"
OURS_ONLY = {"eos_token_ids", "pad_token_id", "vocab_size"}
"""Parameters that no model of NVIDIA's reads."""


@dataclass(eq=False)
class Model:
    """A folder of the repository. `config` is a ModelConfig message, or None where it cannot be read."""

    folder: Path
    text: str
    config: Any | None
    unreadable: Finding | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        return self.folder / CONFIG

    @cached_property
    def kind(self) -> str:
        """Its backend, or `ensemble`. Without either, Triton takes a folder with a model.py for a Python model."""
        if self.config is None:
            return ""
        return self.config.backend or self.config.platform or ("python" if self.has_file("model.py") else "")

    @cached_property
    def versions(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and path.name.isdecimal()]

    def has_file(self, name: str) -> bool:
        return any((version / name).is_file() for version in self.versions)

    @cached_property
    def parameters(self) -> dict[str, str]:
        messages = {} if self.config is None else self.config.parameters
        return {key: messages[key].string_value for key in messages}

    def given(self, name: str) -> str:
        """The value of a parameter; empty where it is missing or an unfilled template."""
        value = self.parameters.get(name, "")
        return "" if PLACEHOLDER.search(value) else value

    @property
    def reads_engine(self) -> bool:
        return self.kind == "tensorrtllm" or "gpt_model_type" in self.parameters

    @property
    def decoupled(self) -> bool:
        return self.config is not None and self.config.model_transaction_policy.decoupled

    @property
    def instances(self) -> int:
        return 0 if self.config is None else sum(group.count or 1 for group in self.config.instance_group) or 1

    def line_of(self, text: str) -> int | None:
        """The first line that has `text` in quotes or begins with it."""
        lines = enumerate(self.text.splitlines(), 1)
        return next((number for number, line in lines if f'"{text}"' in line or line.startswith(text)), None)

    def finding(self, kind: str, effect: Effect, what: str, fix: str, at: str | None = None) -> Finding:
        """A finding about its config.pbtxt, at the line of `at`."""
        return Finding(kind, effect, self.path, what, fix, None if at is None else self.line_of(at))


@dataclass
class Engine:
    """The directory of an engine and its config.json. `config` is None where that cannot be read; `problem` says
    why."""

    folder: Path
    config: dict[str, Any] | None
    problem: str = ""
    build: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        version = self.config.get("version") if self.config else None
        return None if version is None else clipped(str(version))

    @property
    def ranks(self) -> int:
        """The number of rank files in the directory."""
        return len(list(self.folder.glob("rank*.engine")))

    @property
    def world_size(self) -> int | None:
        return self._of_mapping("world_size")

    @property
    def pp(self) -> int:
        return self._of_mapping("pp_size") or 1

    def _of_mapping(self, name: str) -> int | None:
        mapping = (self.config or {}).get("pretrained_config", {}).get("mapping", {})
        return mapping[name] if isinstance(mapping.get(name), int) else None


@dataclass
class LlmModel:
    """A model that generates with the LLM API: a Python model with a model.yaml, or with the inputs of NVIDIA's
    model."""

    model: Model
    config: Any
    yaml: ModelYaml


@dataclass(frozen=True)
class Executor:
    """A model that generates with an engine. `engine` is None if gpt_model_path is empty."""

    model: Model
    engine: Engine | None


@dataclass
class Repository:
    """All models of a repository, and those that generate."""

    folder: Path
    models: dict[str, Model]
    executors: list[Executor] = field(default_factory=list)

    def called_by(self, bls: Model) -> Model | None:
        """The model that a tensorrt_llm_bls calls."""
        return self.models.get(bls.given("tensorrt_llm_model_name") or LLM)

    def has_engine(self, model: Model) -> bool:
        """Whether a model has the backend tensorrtllm or its parameters, or is called tensorrt_llm."""
        by_llm_api = any(llm.model is model for llm in self.llm_models)
        return model.reads_engine or (model.name == LLM and not by_llm_api)

    @cached_property
    def llm_models(self) -> list[LlmModel]:
        """The models that generate without an engine."""
        return [
            LlmModel(model, model.config, read_model_yaml(model.folder))
            for model in self.models.values()
            if model.kind == "python" and (model_yaml_of(model.folder) or _has_sampling_parameters(model))
        ]

    @property
    def ours_without_engines(self) -> bool:
        """Whether `toolkit repo` made it for engine: pytorch."""
        renames = any("renamed_inputs" in model.parameters for model in self.models.values())
        return renames or any(llm.yaml.ours for llm in self.llm_models)

    @property
    def ours(self) -> bool:
        """Whether its Python models come from `toolkit repo`. They read other parameters than NVIDIA's."""
        return any(OURS_ONLY & set(model.parameters) for model in self.models.values())

    def is_rehearsal(self, executor: Model) -> bool:
        """Whether `toolkit repo` made it for engine: rehearsal. Then it has no GPU, and parameters of its own."""
        return self.ours and executor.kind == "python"

    @property
    def ensembles(self) -> Iterator[Model]:
        return (model for model in self.models.values() if model.kind == "ensemble")


def read_repository(folder: Path, engine_dir: Path | None = None) -> Repository:
    """Read a repository. Raises ToolkitError when no folder in it has a config.pbtxt."""
    hint = "Give the directory with a folder for each model."
    if not folder.is_dir():
        is_there = folder.exists()
        what = f"is {kind_of(folder.stat().st_mode)}, expected a directory" if is_there else "no such directory"
        raise ToolkitError(what, where=folder, hint=hint)
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    # Also a dead link or a named pipe: reading it gives the error.
    models = {path.name: _read_model(path) for path in folders if os.path.lexists(path / CONFIG)}
    if not models:
        if (folder / CONFIG).is_file():
            hint = f"This is one model; give the directory above: {folder.resolve().parent}."
        raise ToolkitError(f"is not a model repository: no folder in it has a {CONFIG}", where=folder, hint=hint)
    repository = Repository(folder, models)
    for model in (model for model in models.values() if repository.has_engine(model)):
        given, engine_dir = engine_dir or model.given("gpt_model_path"), None  # --engine is for the first
        repository.executors.append(Executor(model, read_engine(Path(given)) if given else None))
    return repository


def type_name(number: int) -> str:
    """The name of a data type by Triton's number: FP32, STRING ..."""
    from tritonclient.grpc import model_config_pb2

    messages: Any = model_config_pb2
    return enum_name(messages.DataType, number).removeprefix("TYPE_")


def enum_name(enum: Any, number: int) -> str:
    """The name of a number. protobuf also accepts numbers that the enum lacks; these are their own names."""
    return str(enum.Name(number)) if number in enum.values() else str(number)


def _has_sampling_parameters(model: Model) -> bool:
    inputs: Any = model.config.input if model.config is not None else ()
    return any(tensor.name.startswith("sampling_param_") for tensor in inputs)


def read_engine(folder: Path) -> Engine:
    """Read an engine's config.json, or say why it cannot be read."""
    try:
        config = read_json(folder / "config.json")
    except ToolkitError as error:
        return Engine(folder, None, error.what)
    build, model = config.get("build_config", {}), config.get("pretrained_config", {})
    for part, name in ((build, "plugin_config"), (model, "mapping")):
        if not isinstance(part, dict) or not isinstance(part.get(name, {}), dict):
            return Engine(folder, None, "config.json is not that of an engine")
    return Engine(folder, config, build=build)


def _read_model(folder: Path) -> Model:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = folder / CONFIG
    messages: Any = model_config_pb2
    try:
        text = read_text(path)
    except ToolkitError as error:
        return Model(folder, "", None, Finding("syntax", "start", path, error.what, error.hint or "Write it again."))
    try:
        return Model(folder, text, text_format.Parse(text, messages.ModelConfig()))
    except text_format.ParseError as error:
        line = error.GetLine()
        reason = str(error).split(" : ", 1)[-1].strip()
        lines = text.splitlines()
        wrong = lines[line - 1].strip() if line and line <= len(lines) else ""
        if PLACEHOLDER.search(wrong):
            return Model(folder, text, None)  # placeholder_rules names the line
        what = f"is not a model configuration: {clipped(reason)}"
        return Model(folder, text, None, Finding("syntax", "start", path, what, "Correct the line.", line))
    except (ValueError, TypeError, RecursionError) as error:  # a number that its field cannot hold
        what = f"is not a model configuration: {clipped(str(error))}"
        return Model(folder, text, None, Finding("syntax", "start", path, what, "Correct the value."))
