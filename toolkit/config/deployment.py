"""The Deployment: one YAML file, validated once and immutable, from which every later number is derived.

Relative paths in the YAML are relative to the YAML's own folder. Rules that involve two fields, or a
field and the model, are in toolkit/config/rules.py, so that a mistake is found before any stage begins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from toolkit.config.engine_kind import KINDS, EngineKind
from toolkit.config.rules import check, check_same_shape
from toolkit.config.sections import (
    LENGTHS,
    NUMBER,
    TOKENS_EXPECTED,
    EngineOptions,
    Hardware,
    KvCache,
    Limits,
    Load,
    LoosePath,
    Model,
    Parallel,
    Runtime,
    Scheduler,
    Section,
    Serving,
    Slo,
    Workload,
)
from toolkit.errors import ToolkitError, clipped, is_unicode, shown
from toolkit.files.yaml_file import absolute_path, read_yaml
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape, load_shape, no_shape, parse_shape, shape_file
from toolkit.releases.llm_api import llm_release_of
from toolkit.releases.release import LATEST, WITHOUT_ENGINES, Release, release_of

OPTIONS = "engine_options"
"""The field for what `engine` holds beside its kind."""
NOT_IN_THE_YAML = {"file", OPTIONS, "replica"}
PATHS = (("model", "path"), ("runtime", "image_file"), ("loadtest", "prompts"), ("workload", "trace"))
"""The keys of sections that are paths, relative to the YAML's folder; so is `output`."""
REHEARSAL_KV_TOKENS = 16384
"""Upper bound of a rehearsal's KV pool when the YAML names none, so that eight ranks fit a laptop."""


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""A regular expression: it is part of the names of folders and containers."""
LONGEST_NAME = 100
"""Characters of a name, and of a key that a message quotes."""


def _known_kind(name: object) -> object:
    if name not in KINDS:
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": _one_of(KINDS)})
    return name


def _one_of(names: Iterable[str]) -> str:
    *most, last = map(repr, names)
    return f"{', '.join(most)} or {last}"


class Deployment(Section):
    """Everything about one deployment. Make one with `Deployment.load`."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=LONGEST_NAME)]
    file: LoosePath
    model: Model
    engine: Annotated[str, BeforeValidator(_known_kind)]
    engine_options: EngineOptions = EngineOptions()
    """The YAML has both as one: `engine`, a word or a mapping with `kind`."""
    parallel: Parallel = Parallel()
    limits: Limits = Limits()
    kv_cache: KvCache = KvCache()
    scheduler: Scheduler = Scheduler()
    hardware: Hardware = Hardware()
    serving: Serving = Serving()
    runtime: Runtime = Runtime()
    slo: Slo = Slo()
    workload: Workload = Workload()
    loadtest: Load = Load()
    output: LoosePath
    replica: int | None = None
    """Which of `parallel.replicas` this is, of those that `apart` gives; None for them all."""

    @classmethod
    def load(cls, file: str | Path, engine: str | None = None, changes: Mapping[str, Any] | None = None) -> Deployment:
        """Read and check a YAML file; `engine` and `changes` ("section.key": value) replace what it says.

        Raises ToolkitError, one line.
        """
        file = Path(file)
        if not is_unicode(str(file.absolute())):  # no lock file or command line could name it
            raise ToolkitError("its path is not UTF-8 text", where=file, hint="Rename the folder.")
        content = changed(read_yaml(file), changes or {})
        for key in set(content) & NOT_IN_THE_YAML:
            raise ToolkitError(f"{key}: unknown key", where=file, hint=_known_keys([], cls))
        if isinstance(content.get("engine"), dict):
            content[OPTIONS] = {**content["engine"]}
            if "kind" not in content[OPTIONS]:
                raise ToolkitError("engine.kind: missing", where=file, hint=f"Use {', '.join(KINDS)}.")
            content["engine"] = content[OPTIONS].pop("kind")
        if "name" not in content and not re.fullmatch(NAME, file.stem):
            what = f"its name, {shown(file.stem)}, cannot be that of a deployment"
            hint = "Add `name: NAME` to it, of letters, digits, '.', '_' and '-'; or rename the file."
            raise ToolkitError(what, where=file, hint=hint)
        name = content.setdefault("name", file.stem)
        content.setdefault("output", str(Path("..", "work", name if isinstance(name, str) else "")))
        if engine is not None:
            if engine not in KINDS:
                raise ToolkitError(f"engine: {shown(engine)} is unknown", hint=f"Use {', '.join(KINDS)}.")
            content["engine"] = engine
        try:
            deployment = cls.model_validate({**_absolute_paths(content, file), "file": file})
        except ValidationError as error:
            raise explain(error, file, cls) from None
        check(deployment)
        return deployment

    @cached_property
    def shape(self) -> ModelShape:
        """The model's shape: from the checkpoint where it is there, else from the YAML's `model.config`."""
        inline = self.model.config
        if shape_file(self.model.path) is not None:
            found = load_shape(self.model.path)
            if inline is not None:
                check_same_shape(found, parse_shape(inline, where=f"{self.file}: model.config"), self)
            return found
        if inline is None:
            raise ToolkitError(
                f"model.path: {no_shape(self.model.path)}",
                where=self.file,
                hint="To plan without the model, give the fields of its config.json as model.config.",
            )
        return parse_shape(inline, where=f"{self.file}: model.config")

    @property
    def kind(self) -> EngineKind:
        """The facts about its engine."""
        return KINDS[self.engine]

    @property
    def release(self) -> Release:
        """Of TensorRT-LLM, that its parts are of. A rehearsal acts as the latest."""
        if not self.kind.on_gpus:
            return LATEST
        version = self.engine_options.version
        if not self.kind.engine_files and llm_release_of(version, where=self.file) == WITHOUT_ENGINES.name:
            return WITHOUT_ENGINES
        return release_of(version, where=self.file)

    @property
    def mapping(self) -> RankMapping:
        return RankMapping(tp=self.parallel.tp, pp=self.parallel.pp)

    @property
    def max_batch_size(self) -> int:
        """Sequences of one micro-batch. The executor of each replica keeps pp micro-batches in flight."""
        return math.ceil(self.limits.max_sequences / (self.parallel.pp * self.parallel.replicas))

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What the engine has to be built for, as the lock of its directory names it."""
        return {
            "engine": self.engine,
            "max_batch_size": self.max_batch_size,
            "max_num_tokens": self.limits.max_num_tokens,
            "max_seq_len": self.limits.max_seq_len,
        }

    @property
    def all_ranks(self) -> int:
        """Of every replica: as many as GPUs."""
        return self.mapping.world_size * len(self.per_replica())

    def per_replica(self) -> tuple[Deployment, ...]:
        """A deployment for each replica, with ports and a run folder of its own; all else, and engines, are shared.

        Itself alone where it is one replica already.
        """
        if self.parallel.replicas == 1 or self.replica is not None:
            return (self,)
        return tuple(
            with_settings(self, serving=self.serving.ports(replica)).model_copy(update={"replica": replica})
            for replica in range(self.parallel.replicas)
        )

    @property
    def kv_blocks(self) -> int:
        """Blocks of a rehearsal's KV pool; on GPUs the pool follows from free memory."""
        tokens = self.kv_cache.max_tokens
        if tokens is None:
            wanted = self.limits.max_sequences * self.limits.max_seq_len
            tokens = max(min(wanted, REHEARSAL_KV_TOKENS), self.limits.max_seq_len)
        return math.ceil(tokens / self.kv_cache.tokens_per_block)

    def url(self, protocol: str) -> str:
        """Where clients on this machine reach the server: http://HOST:PORT or grpc://HOST:PORT."""
        host = "127.0.0.1" if self.serving.host == "0.0.0.0" else self.serving.host
        return f"{protocol}://{host}:{self.serving.http_port if protocol == 'http' else self.serving.grpc_port}"

    @property
    def checkpoint_dir(self) -> Path:
        return self.output / "checkpoint"

    @property
    def engine_dir(self) -> Path:
        return self.output / "engine"

    @property
    def repository_dir(self) -> Path:
        return self.output / "repository"

    @property
    def report_dir(self) -> Path:
        return self.output / "report"

    @property
    def rates_dir(self) -> Path:
        return self.output / "rates"

    @property
    def run_dir(self) -> Path:
        return self.output / "run" if self.replica is None else self.output / "run" / f"replica{self.replica}"


def with_settings(deployment: Deployment, **sections: dict[str, Any]) -> Deployment:
    """A copy with some fields of some sections changed; rules are not checked again."""
    changed = {name: getattr(deployment, name).model_copy(update=fields) for name, fields in sections.items()}
    return deployment.model_copy(update=changed)


def changed(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML's content with "section.key" set to other values; what is no mapping is left for validation."""
    content = dict(content)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if not key:
            content[section] = value
        elif isinstance(content.get(section, {}), dict):
            content[section] = {**content.get(section, {}), key: value}
    return content


def _absolute_paths(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Make the YAML's paths absolute. Raises ToolkitError for text that cannot be a path."""
    resolved = dict(content, output=absolute_path(content["output"], file, "output"))
    if isinstance(content["output"], str) and content["output"]:
        _check_output(resolved["output"], file.resolve().parent / Path(content["output"]).expanduser(), file)
    for section, key in PATHS:
        if isinstance(resolved.get(section), dict) and key in resolved[section]:
            path = absolute_path(resolved[section][key], file, f"{section}.{key}")
            resolved[section] = dict(resolved[section], **{key: path})
    return resolved


def _check_output(output: Path, written: Path, file: Path) -> None:
    """Raise a ToolkitError for a folder that nothing should be written into. `written` is the path before links."""
    if output == output.parent:
        raise ToolkitError("output: / is not a folder for one deployment", where=file, hint="Give a folder below it.")
    if written.is_symlink() and not output.exists():
        what = f"output: {shown(str(written))} is a link to {shown(str(output))}, which is not there"
        raise ToolkitError(what, where=file, hint="Make that folder, or remove the link.")


_PLAIN_MESSAGES = {"path_type": "expected a path as text", "model_type": "expected a mapping of keys"}


def explain(error: ValidationError, file: Path, section: type[BaseModel]) -> ToolkitError:
    """The first of pydantic's complaints about a section read from a file, as one line in our form."""
    problems = error.errors()
    first = problems[0]
    location = [str(part) for part in first["loc"] if part not in (NUMBER, LENGTHS)]
    if location[0] == OPTIONS:
        location[0] = "engine"
    field = ".".join(clipped(part, LONGEST_NAME) for part in location)
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ToolkitError(f"{field}: unknown key{more}", where=file, hint=_known_keys(location[:-1], section))
    if first["type"] == "missing":
        return ToolkitError(
            f"{field}: missing{more}", where=file, hint="Add it; for examples: toolkit sample configs DIR"
        )
    message = _PLAIN_MESSAGES.get(first["type"], first["msg"][:1].lower() + first["msg"][1:])
    if NUMBER in first["loc"] and first["type"] != "less_than":  # which names the limit itself
        message = TOKENS_EXPECTED
    return ToolkitError(f"{field}: {message}, got {shown(first['input'])}{more}", where=file)


def _known_keys(location: list[str], section: type[BaseModel]) -> str:
    for part in [OPTIONS if part == "engine" else part for part in location[:1]] + location[1:]:
        if part.isdigit():  # a place in a list
            continue
        inner = _section(section.model_fields[part].annotation)
        if inner is None:
            return ""
        section = inner
    names = {field.alias or name for name, field in section.model_fields.items()}
    return f"Known here: {', '.join(sorted(names - NOT_IN_THE_YAML))}."


def _section(annotation: Any) -> type[BaseModel] | None:
    """The block of keys that a field is or, where it has several forms, may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
