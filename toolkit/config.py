"""The Deployment: one YAML file, validated once and immutable, from which every later number is derived.

Relative paths in the YAML are relative to the YAML's own folder. Rules that involve two fields, or a
field and the model, are in toolkit/rules.py, so that a mistake is found before any stage begins.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import ToolkitError
from toolkit.mapping import Mapping
from toolkit.model import ModelShape, load_shape, no_shape, parse_shape, shape_file
from toolkit.rules import check, check_same_shape
from toolkit.yamlfile import read_yaml

Engine = Literal["tensorrt", "pytorch", "rehearsal"]
ENGINES: tuple[Engine, ...] = ("tensorrt", "pytorch", "rehearsal")
REHEARSAL_KV_TOKENS = 16384
"""Upper bound of a rehearsal's KV pool when the YAML names none, so that eight ranks fit a laptop."""

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
LoosePath = Annotated[Path, Field(strict=False)]


class Section(BaseModel):
    """A block of the YAML: unknown keys are refused, values are not coerced, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Section):
    path: LoosePath
    """A Hugging Face directory (config.json, safetensors, tokenizer.json), or one of Meta's (params.json)."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    config: dict[str, Any] | None = None
    """The fields of config.json, for planning where the checkpoint is not; must agree with it where it is."""


class Parallel(Section):
    tp: Positive = 1
    pp: Positive = 1


class Limits(Section):
    max_sequences: Positive = 64
    """Sequences in flight over all micro-batches; one micro-batch takes max_sequences / pp of them."""
    max_num_tokens: Positive = 8192
    """Tokens that one step (one micro-batch) may compute."""
    max_seq_len: Positive = 8192
    """Prompt and answer together, per sequence."""
    max_queue_size: Positive = 256
    """Requests that may wait; further ones are refused at once."""


class KvCache(Section):
    tokens_per_block: Literal[8, 16, 32, 64, 128] = 32
    reuse: bool = True
    max_tokens: Positive | None = None
    free_gpu_memory_fraction: Share = 0.9


class Scheduler(Section):
    policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    chunked_context: bool = True


class Hardware(Section):
    gpu: str = "h100-sxm"
    gpus: Positive = 8
    gpu_memory_gib: PositiveFloat = 79.6
    """What the driver shows of one GPU, in GiB (an 80 GB H100 shows about 79.6)."""
    gpu_memory_limit: Share = 0.85
    host_memory_gb: PositiveFloat = 256
    cores_per_gpu: Positive = 16


class Serving(Section):
    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    startup_timeout_s: PositiveFloat = 600
    drain_timeout_s: PositiveFloat = 30


class Percentiles(Section):
    """Upper limits in milliseconds; a percentile that is not given has no limit."""

    p50: PositiveFloat | None = None
    p90: PositiveFloat | None = None
    p95: PositiveFloat | None = None
    p99: PositiveFloat | None = None


class Slo(Section):
    """Targets. Metric definitions are in toolkit.slo.metrics."""

    ttft_ms: Percentiles = Percentiles()
    tpot_ms: Percentiles = Percentiles()
    itl_ms: Percentiles = Percentiles()
    e2e_ms: Percentiles = Percentiles()
    prefill_ms: Percentiles = Percentiles()
    requests_per_s: PositiveFloat | None = None
    compliance: Share = 0.99
    """Share of all requests, errors included, that must be inside every per-request target."""
    gpu_utilisation: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    load_balance_variance: Share | None = None


class Load(Section):
    """The load test: `users` streams at a time, each sending its next request when the last one ended."""

    users: Positive = 8
    requests: Positive = 64
    warmup_requests: Annotated[int, Field(ge=0)] = 4
    max_tokens: Positive = 64
    protocol: Literal["http", "grpc"] = "http"
    timeout_s: PositiveFloat = 120
    prompts: LoosePath | None = None
    """A text file with one prompt a line, or JSONL with a "prompt" field; questions of our own otherwise."""


class Deployment(Section):
    """Everything about one deployment. Make one with `Deployment.load`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    file: LoosePath
    model: Model
    engine: Engine
    parallel: Parallel = Parallel()
    limits: Limits = Limits()
    kv_cache: KvCache = KvCache()
    scheduler: Scheduler = Scheduler()
    hardware: Hardware = Hardware()
    serving: Serving = Serving()
    slo: Slo = Slo()
    loadtest: Load = Load()
    output: LoosePath

    @classmethod
    def load(cls, file: str | Path, engine: str | None = None) -> Deployment:
        """Read and check a YAML file; `engine` replaces the file's. Raises ToolkitError, one line."""
        file = Path(file)
        content = read_yaml(file)
        if "file" in content:
            raise ToolkitError("file: unknown key", where=file, hint=_known_keys(cls, ()))
        content.setdefault("name", file.stem)
        content.setdefault("output", f"../work/{content['name']}")
        if engine is not None:
            if engine not in ENGINES:
                raise ToolkitError(f"engine: {engine!r} is unknown", hint=f"Use {', '.join(ENGINES)}.")
            content["engine"] = engine
        try:
            deployment = cls.model_validate({**_absolute_paths(content, file.resolve().parent), "file": file})
        except ValidationError as error:
            raise _explain(error, file) from None
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
    def mapping(self) -> Mapping:
        return Mapping(tp=self.parallel.tp, pp=self.parallel.pp)

    @property
    def max_batch_size(self) -> int:
        """Sequences of one micro-batch. The executor keeps pp micro-batches in flight."""
        return math.ceil(self.limits.max_sequences / self.parallel.pp)

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
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.serving.host, self.serving.host)
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
    def run_dir(self) -> Path:
        return self.output / "run"


def _absolute_paths(content: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the YAML's paths absolute; anything that is not text is left for validation to refuse."""

    def absolute(value: Any) -> Any:
        return (base / Path(value).expanduser()).resolve() if isinstance(value, str) and value else value

    resolved = dict(content, output=absolute(content["output"]))
    for section, key in (("model", "path"), ("loadtest", "prompts")):
        if isinstance(resolved.get(section), dict) and key in resolved[section]:
            resolved[section] = dict(resolved[section], **{key: absolute(resolved[section][key])})
    return resolved


_PLAIN_MESSAGES = {"path_type": "expected a path as text", "model_type": "expected a mapping of keys"}


def _explain(error: ValidationError, file: Path) -> ToolkitError:
    """The first of pydantic's complaints, as one line in our form."""
    problems = error.errors()
    first = problems[0]
    location = [str(part) for part in first["loc"]]
    field = ".".join(location)
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ToolkitError(f"{field}: unknown key{more}", where=file, hint=_known_keys(Deployment, location[:-1]))
    if first["type"] == "missing":
        return ToolkitError(f"{field}: missing{more}", where=file, hint="Add it; build_configs/ has examples.")
    message = _PLAIN_MESSAGES.get(first["type"], first["msg"][:1].lower() + first["msg"][1:])
    return ToolkitError(f"{field}: {message}, got {first['input']!r}{more}", where=file)


def _known_keys(section: Any, location: list[str] | tuple[str, ...]) -> str:
    for part in location:
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        annotation = fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    names = (field.alias or name for name, field in section.model_fields.items())
    return f"Known here: {', '.join(sorted(set(names) - {'file'}))}."
