"""The sections of a deployment's YAML: each a block of keys with types and defaults.

Rules between two fields are in toolkit/config/rules.py; toolkit/config/deployment.py puts the sections together.
`workload` is in workload.py, `gateway` and `recovery` are in operating.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from toolkit.config.metrics import METRICS

Positive = Annotated[int, Field(gt=0, lt=2**31)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
"""A share of memory below 1: the backend aborts for a KV cache with a fraction of 1.0."""
LAST_PORT = 65535
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
PORTS = ("http_port", "grpc_port", "metrics_port")
"""The fields of `serving` that are ports."""
PORTS_APART = 10
"""The distance from the ports of one replica to those of the next."""
LoosePath = Annotated[Path, Field(strict=False)]
Broken = tuple[str, str, str]
"""A broken rule: (field, what is wrong, what to do)."""


class Section(BaseModel):
    """A block of the YAML: unknown keys are refused, values are not converted, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """`model`: where the model is, and its data types."""

    path: LoosePath
    """A Hugging Face directory (config.json, safetensors, tokenizer.json), or one of Meta's (params.json)."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    quantization: Literal["none", "fp8"] = "none"
    """Of the layers' weights. For planning only: this release neither converts nor rehearses it."""
    chat_template: str | None = None
    """Which chat template to use, if the model has several."""
    config: dict[str, Any] | None = None
    """The fields of config.json, to plan without the checkpoint. With the checkpoint, they must agree with it."""


class EngineOptions(Section):
    """The keys of `engine` besides `kind`, where it is a mapping: {kind: tensorrt, version: ..., extra: {...}}."""

    version: str = "1.2.1"
    """The TensorRT-LLM release: engines run only under the one that built them."""
    workers: Positive | None = None
    """Ranks that are built at the same time. Default: one per GPU, as far as free host memory allows."""
    extra: dict[str, str | int | bool] = {}
    """Further flags of trtllm-build, by their names without dashes."""


class Parallel(Section):
    """`parallel`: how ranks share the model."""

    tp: Positive = 1
    pp: Positive = 1
    replicas: Positive = 1
    """Groups of tp x pp GPUs. The requests are spread over them."""
    nodes: Positive = 1
    """The nodes of a group: each has whole pipeline stages of every replica, and `hardware.gpus` GPUs."""


class Cluster(Section):
    """`cluster`: where the nodes of a group are, if parallel.nodes is more than 1. A Slurm allocation needs none."""

    hosts: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names or IPv4 addresses. The first one is the node where `toolkit serve` runs."""
    hostfile: LoosePath | None = None
    """mpirun's host file, in place of `hosts`: a node per line."""
    interface: str | None = None
    """The network between the nodes, by its interface on each (eth1). Default: the one that has a node's address."""
    launch_agent: LoosePath | None = None
    """What mpirun starts a command on another node with, as AGENT HOST COMMAND. Default: ssh, or Slurm's srun."""


class Limits(Section):
    """`limits`: what runs and waits at most."""

    max_sequences: Positive = 64
    """Sequences in flight over all replicas and micro-batches; a micro-batch takes max_sequences / (replicas x pp)."""
    max_num_tokens: Positive = 8192
    """Tokens that one step (one micro-batch) may compute."""
    max_seq_len: Positive = 8192
    """Prompt and answer together, per sequence."""
    max_queue_size: Positive = 256
    """Requests that may wait while max_sequences run; more are refused at once."""


class KvCacheSection(Section):
    """`kv_cache`: the blocks that hold keys and values."""

    tokens_per_block: Literal[8, 16, 32, 64, 128] = 32
    reuse: bool = True
    max_tokens: Positive | None = None
    dtype: Literal["auto", "fp8"] = "auto"
    """auto: the model's dtype, or FP8 where its weights are FP8."""
    free_gpu_memory_fraction: Fraction | None = None
    """Share of the memory that weights and workspace leave free. Default: derived from hardware.gpu_memory_limit."""


class SchedulerSection(Section):
    """`scheduler`: how in-flight batching admits requests."""

    policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    chunked_context: bool = True


class Hardware(Section):
    """`hardware`: the machine that the plan counts on."""

    gpu: str = "h100-sxm"
    gpus: Positive = 8
    """Of one node."""
    gpu_memory_gib: PositiveFloat = 79.6
    """Memory of one GPU as the driver shows it, in GiB (an 80 GB H100 shows about 79.6)."""
    gpu_memory_limit: Fraction = 0.85
    host_memory_gb: PositiveFloat = 256
    cores_per_gpu: Positive = 16
    node_link_gbps: PositiveFloat = 100
    """Gbit/s of a link from a node to the next one, each way."""
    node_links: Positive = 1
    """Such links of a node. The ranks of a stage share them."""
    node_latency_us: PositiveFloat = 20
    """Of a message from a GPU to one on another node. 20 is an estimate."""


class Serving(Section):
    """`serving`: where the server listens, and how it starts and ends."""

    host: str = "127.0.0.1"
    """An IPv4 address or a name: where the server listens."""
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    metrics_host: Literal["0.0.0.0"] | None = None
    """0.0.0.0: other machines may read Triton's metrics, which hold no text. All else stays at `host`."""
    mode: Literal["leader", "orchestrator"] = "leader"
    """tensorrt: one tritonserver per rank, or one tritonserver that starts a worker process per rank."""
    startup_timeout_s: PositiveFloat | None = None
    """Default: derived from the bytes to load and the speed of the disk (toolkit/serve/budget.py)."""
    drain_timeout_s: PositiveFloat = 30
    decoupled: bool = True
    """A request may have several responses, so answers can be streamed. Unary clients (`infer`) need false."""

    def ports(self, replica: int = 0) -> dict[str, int]:
        """The ports of a replica, by field."""
        return {name: getattr(self, name) + PORTS_APART * replica for name in PORTS}


class Runtime(Section):
    """Where trtllm-build, mpirun and tritonserver run. A word alone is the kind: `runtime: docker`.

    A rehearsal by --engine of a YAML for GPUs runs on the host.
    """

    kind: Literal["host", "docker", "enroot", "apptainer"] = "host"
    image: Annotated[str, Field(min_length=1)] | None = None
    """The image's name in its registry. Default: NVIDIA's newest image that has `engine.version`; for a rehearsal a
    plain Python image."""
    image_file: LoosePath | None = None
    """enroot, apptainer: the image as a file. Default: a file in the folder `images` next to `output`."""
    options: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """More options for the container program. They come after ours, so they win."""

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Percentiles(Section):
    """Upper limits in milliseconds; None: no limit."""

    p50: PositiveFloat | None = None
    p90: PositiveFloat | None = None
    p95: PositiveFloat | None = None
    p99: PositiveFloat | None = None

    @property
    def limits(self) -> list[tuple[int, float]]:
        """(percentile, limit) for each limit, in rising order."""
        limits = ((int(name[1:]), getattr(self, name)) for name in Percentiles.model_fields)
        return sorted((q, limit) for q, limit in limits if limit is not None)


if TYPE_CHECKING:
    _Latencies = Section
else:  # a new metric is one entry of METRICS; a type checker cannot see the field that it gets here
    _LATENCIES = {name: (Percentiles, Percentiles()) for name in METRICS}
    _Latencies = create_model("_Latencies", __base__=Section, **_LATENCIES)


class Slo(_Latencies):
    """The targets: percentiles of each metric in toolkit.config.metrics, and the fields below."""

    requests_per_s: PositiveFloat | None = None
    compliance: Share = 0.99
    """Share of all requests, failed ones included, that must meet every per-request limit."""
    gpu_utilisation: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    load_balance_variance: Share | None = None

    def percentiles(self, metric: str) -> list[tuple[int, float]]:
        """(percentile, limit in ms) of each target for a metric of METRICS, in rising order."""
        limits: Percentiles = getattr(self, metric)
        return limits.limits


class LoadTest(Section):
    """The load test: `users` requests at a time. Each user sends the next one when the last one has ended."""

    users: Positive = 8
    requests: Positive = 64
    warmup_requests: Annotated[int, Field(ge=0)] = 4
    max_tokens: Positive = 64
    protocol: Literal["http", "grpc"] = "http"
    timeout_s: PositiveFloat = 120
    prompts: LoosePath | None = None
    """A text file with one prompt per line, or JSONL with a "prompt" field. Default: built-in questions."""
