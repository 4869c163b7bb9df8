"""The Deployment: one YAML file, validated once and immutable, from which every later number is derived.

`load.py` reads it. The rules between two fields, or between a field and the model, are in `rules.py`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config.engine_kind import KINDS, EngineKind
from toolkit.config.operating import Deploy, Fleet, Gateway, Monitoring, Recovery, Tuning
from toolkit.config.sections import (
    Cluster,
    EngineOptions,
    Hardware,
    KvCacheSection,
    Limits,
    LoadTest,
    LoosePath,
    ModelSection,
    Parallel,
    Runtime,
    SchedulerSection,
    Section,
    Serving,
    Slo,
)
from toolkit.config.workload import Workload
from toolkit.errors import ToolkitError
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape, load_shape, no_shape, parse_shape, shape_file
from toolkit.model.shape_rules import check_same_shape
from toolkit.releases.llm_api import llm_release_of
from toolkit.releases.release import LATEST, WITHOUT_ENGINES, Release, release_of

REHEARSAL_KV_TOKENS = 16384
"""Upper bound of a rehearsal's KV pool when the YAML gives none, so that eight ranks fit on a laptop."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""A regular expression for a name, which is part of the names of folders and containers."""
NAME_PATTERN = rf"^{NAME}$"
NODES = 64
"""Nodes whose requests the door lets in, where it does not know how many there are. Each replica has its own limit."""
LONGEST_NAME = 100
"""Most characters of a name, and of a key that a message quotes."""


def _known_kind(name: object) -> object:
    if name not in KINDS:
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": _one_of(KINDS)})
    return name


def _one_of(names: Iterable[str]) -> str:
    *most, last = map(repr, names)
    return f"{', '.join(most)} or {last}"


class Deployment(Section):
    """Everything about one deployment. Make one with `toolkit.config.load.load_deployment`."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)]
    file: LoosePath
    model: ModelSection
    engine: Annotated[str, BeforeValidator(_known_kind)]
    engine_options: EngineOptions = EngineOptions()
    """In the YAML, `engine` holds both: a word, or a mapping with `kind`."""
    parallel: Parallel = Parallel()
    cluster: Cluster = Cluster()
    limits: Limits = Limits()
    kv_cache: KvCacheSection = KvCacheSection()
    scheduler: SchedulerSection = SchedulerSection()
    hardware: Hardware = Hardware()
    serving: Serving = Serving()
    runtime: Runtime = Runtime()
    slo: Slo = Slo()
    workload: Workload = Workload()
    loadtest: LoadTest = LoadTest()
    gateway: Gateway = Gateway()
    recovery: Recovery = Recovery()
    deploy: Deploy = Deploy()
    fleet: Fleet = Fleet()
    monitoring: Monitoring = Monitoring()
    tuning: Tuning = Tuning()
    output: LoosePath
    replica: int | None = None
    """Which replica this is (`per_replica` makes these); None for all replicas together."""
    engine_given: bool = Field(default=False, exclude=True)
    """The engine comes from --engine, and the YAML has another one."""

    def command(self, name: str, *arguments: str) -> str:
        """The command line `toolkit NAME` for this deployment, as messages give it: with its --engine."""
        engine = ["--engine", self.engine] if self.engine_given else []
        return shlex.join(["toolkit", name, str(self.file), *arguments, *engine])

    @cached_property
    def shape(self) -> ModelShape:
        """The model's shape, from the checkpoint if it is there, else from the YAML's `model.config`."""
        inline = self.model.config
        if shape_file(self.model.path) is not None:
            shape = load_shape(self.model.path)
            if inline is not None:
                check_same_shape(
                    shape, parse_shape(inline, where=f"{self.file}: model.config"), self.model.path, self.file
                )
            return shape
        if inline is None:
            raise ToolkitError(
                f"model.path: {no_shape(self.model.path)}",
                where=self.file,
                hint="To plan without the model, copy the fields of its config.json to model.config.",
            )
        return parse_shape(inline, where=f"{self.file}: model.config")

    @property
    def kind(self) -> EngineKind:
        """The facts about its engine."""
        return KINDS[self.engine]

    @property
    def release(self) -> Release:
        """The TensorRT-LLM release. A rehearsal behaves like the latest."""
        if not self.kind.on_gpus:
            return LATEST
        version = self.engine_options.version
        if not self.kind.engine_files and llm_release_of(version, where=self.file) == WITHOUT_ENGINES.name:
            return WITHOUT_ENGINES
        return release_of(version, where=self.file)

    @property
    def mapping(self) -> RankMapping:
        return RankMapping(tp=self.parallel.tp, pp=self.parallel.pp, nodes=self.parallel.nodes)

    @property
    def max_batch_size(self) -> int:
        """Sequences per micro-batch. The executor of each replica keeps pp micro-batches in flight."""
        return math.ceil(self.limits.max_sequences / (self.parallel.pp * self.parallel.replicas))

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What the engine is built for. The lock of its directory holds it."""
        return {
            "engine": self.engine,
            "max_batch_size": self.max_batch_size,
            "max_num_tokens": self.limits.max_num_tokens,
            "max_seq_len": self.limits.max_seq_len,
        }

    @property
    def built_for(self) -> tuple[Any, ...]:
        """What engines are built for. Two deployments with the same value can serve the same engines."""
        return self.engine_settings, self.kv_cache.tokens_per_block, self.model, self.parallel.tp, self.parallel.pp

    @property
    def all_ranks(self) -> int:
        """Ranks of all replicas together: one per GPU."""
        return self.mapping.world_size * len(self.per_replica())

    @property
    def all_gpus(self) -> int:
        """GPUs of all nodes of the group."""
        return self.hardware.gpus * self.parallel.nodes

    @property
    def ranks_here(self) -> int:
        """Ranks of all replicas on one node."""
        return self.all_ranks // self.parallel.nodes

    def per_replica(self) -> tuple[Deployment, ...]:
        """A deployment for each replica, with its own ports and run folder. They share everything else, also engines.

        A deployment that is one replica gives itself.
        """
        if self.parallel.replicas == 1 or self.replica is not None:
            return (self,)
        return tuple(
            with_settings(self, serving=self.serving.ports(replica)).model_copy(update={"replica": replica})
            for replica in range(self.parallel.replicas)
        )

    def here(self) -> tuple[Deployment, ...]:
        """Those of `per_replica()` that this node serves: none if it is only a door."""
        return () if self.gateway.role == "front" else self.per_replica()

    @property
    def most_requests(self) -> int:
        """Requests that the door lets in at once, of each API: Envoy counts them per cluster."""
        nodes = NODES if self.gateway.etcd else 1
        return self.gateway.max_requests or nodes * (self.limits.max_sequences + self.limits.max_queue_size)

    @property
    def served_name(self) -> str:
        """What OpenAI's clients call the model."""
        return self.gateway.model_name or self.name

    @property
    def kv_blocks(self) -> int:
        """Blocks in a rehearsal's KV pool. On GPUs, free memory decides the size of the pool."""
        tokens = self.kv_cache.max_tokens
        if tokens is None:
            all_sequences = self.limits.max_sequences * self.limits.max_seq_len
            tokens = max(min(all_sequences, REHEARSAL_KV_TOKENS), self.limits.max_seq_len)
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
    def calibration_file(self) -> Path:
        """Where `toolkit calibrate` writes, and where load tests look for step times."""
        return self.output / "calibration.json"

    @property
    def run_dir(self) -> Path:
        return self.output / "run" if self.replica is None else self.output / "run" / f"replica{self.replica}"


def with_settings(deployment: Deployment, **sections: dict[str, Any]) -> Deployment:
    """A copy with fields of some sections changed. The rules are not checked again."""
    changed = {name: getattr(deployment, name).model_copy(update=fields) for name, fields in sections.items()}
    return deployment.model_copy(update=changed)
