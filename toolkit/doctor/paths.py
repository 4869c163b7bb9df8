"""Looks at what a deployment points to: its model, the disks that it writes to, its ports, its running group."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import checkpoint
from toolkit.checkpoint.source import check_source, open_source
from toolkit.config.sections import PORTS
from toolkit.engine import build_plan
from toolkit.errors import ToolkitError
from toolkit.files import artifacts
from toolkit.files.json_file import LARGEST_CONFIG, read_json
from toolkit.gateway.door import up_pid
from toolkit.gateway.node import node_of
from toolkit.gateway.node_checks import check_nodes
from toolkit.model.shape import DTYPE_BYTES
from toolkit.serve.group_nodes import check_this_node
from toolkit.serve.preflight import REHEARSAL_SEGMENT_BYTES, check_port, shared_memory_needed
from toolkit.serve.state import supervisor_pid
from toolkit.sizing.host import rank_bytes

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


NO_TOKENIZER = "no tokenizer.json"
TOKENIZER_FROM = "Copy it from the model's repository: it encodes the prompts."


@dataclass(frozen=True)
class Model:
    """The directory at model.path. `problem` is "" when it can be converted and served; `weights` counts files."""

    path: Path
    problem: str = ""
    fix: str = ""
    weights: int = 0
    weight_bytes: int = 0
    tokenizer: bool = True
    """Whether tokenizer.json is there. Serving an engine needs nothing else of the model."""


@dataclass(frozen=True)
class Disk:
    """A file system that the deployment writes to. `folder` is a folder on it that exists.

    `to_come` has the bytes that are still to be written, by what they are.
    """

    folder: Path
    writable: bool
    free_bytes: int
    to_come: Mapping[str, int]


@dataclass(frozen=True)
class Port:
    """A port of `serving`. `problem` is "" when it is free."""

    name: str
    address: str
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Built:
    """What an engine's config.json says. `problem` is "" if it can be read."""

    path: Path
    version: str = ""
    """The TensorRT-LLM that built it, the only one that runs it."""
    tp: int = 0
    pp: int = 0
    problem: str = ""
    sm: str = ""
    """The compute capability that it was built on, the only one that runs it. "" if unknown."""


@dataclass(frozen=True)
class Nodes:
    """This node's place among others. `problem` is "" if it can join them."""

    address: str = ""
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Places:
    """What is where a deployment points."""

    model: Model
    disks: tuple[Disk, ...]
    made: tuple[str, ...]
    """The stages whose directories are there, whole, and of this deployment: checkpoint, engine."""
    ports: tuple[Port, ...]
    shared_memory_bytes: int
    """Bytes of /dev/shm that the group will take."""
    running: int | None
    """The process that serves this deployment now, or None."""
    built: Built | None = None
    """The engine in the deployment's engine directory, or None."""
    nodes: Nodes | None = None
    """The network between the nodes; None where this node is the only one."""
    group: Nodes | None = None
    """This node's place in a group over several nodes; None for groups on one node."""


def look_at_places(deployment: Deployment) -> Places:
    """Look at everything that the deployment points to."""
    model, running = _model(deployment), _running(deployment)
    return Places(
        model=model,
        disks=tuple(_disks(deployment, model)),
        made=_made(deployment),
        ports=tuple(_port(replica, name) for replica in deployment.here() for name in PORTS),
        shared_memory_bytes=_shared_memory(deployment),
        running=running,
        built=_built(deployment.engine_dir / "config.json"),
        nodes=_nodes(deployment, running is not None or up_pid(deployment) is not None),
        group=_group(deployment),
    )


def _nodes(deployment: Deployment, running: bool) -> Nodes | None:
    """What keeps this node from joining the others, if anything. Its ports are its own while it runs."""
    try:
        node = node_of(deployment) if running else check_nodes(deployment)
    except ToolkitError as error:
        where = f"{error.where}: " if error.where and error.where != deployment.file else ""
        return Nodes(problem=f"{where}{error.what}", fix=error.hint or "")
    return Nodes(node.address) if node else None


def _group(deployment: Deployment) -> Nodes | None:
    """What keeps this node, or on the first one another node, from serving its part of the ranks."""
    try:
        address = check_this_node(deployment)
    except ToolkitError as error:
        return Nodes(problem=error.what, fix=error.hint or "")
    return Nodes(address) if address else None


def _running(deployment: Deployment) -> int | None:
    """The process that serves it, or None. None also if this user cannot see it: then its ports show as taken."""
    try:
        return next(filter(None, map(supervisor_pid, deployment.per_replica())), None)
    except ToolkitError:
        return None


def _model(deployment: Deployment) -> Model:
    path = deployment.model.path
    if not os.path.lexists(path):
        return Model(path, "no such directory", _where_from(deployment), tokenizer=False)
    tokenizer = os.path.isfile(path / "tokenizer.json")  # noqa: PTH113 - as below
    try:
        source = open_source(path)
        check_source(source, deployment.shape)
    except ToolkitError as error:
        return Model(path, error.what, error.hint or "", tokenizer=tokenizer)
    if not tokenizer:
        return Model(path, NO_TOKENIZER, TOKENIZER_FROM, tokenizer=False)
    weights = {tensor.file for tensor in source.tensors.values()}
    return Model(path, weights=len(weights), weight_bytes=sum(tensor.size for tensor in source.tensors.values()))


def _where_from(deployment: Deployment) -> str:
    if not deployment.kind.on_gpus:
        path = shlex.quote(str(deployment.model.path))
        return f"Put a model there, or write a small one: toolkit sample smollm2 {path}"
    return "Put the model there, or correct model.path."


def _disks(deployment: Deployment, model: Model) -> Iterator[Disk]:
    """One for each file system, with all that will be written to it."""
    grouped: dict[int, tuple[Path, dict[str, int]]] = {}
    for what, path, size in _writes(deployment, model):
        folder = _nearest_folder(path)
        grouped.setdefault(folder.stat().st_dev, (folder, {}))[1][what] = size
    for folder, to_come in grouped.values():
        yield Disk(folder, os.access(folder, os.W_OK), shutil.disk_usage(folder).free, to_come)


def _writes(deployment: Deployment, model: Model) -> Iterator[tuple[str, Path, int]]:
    """(what, where, bytes) that will be written. A rehearsal's engines are links to its checkpoint."""
    size = sum(rank_bytes(deployment))
    directory, engines = deployment.checkpoint_dir, deployment.engine_dir
    yield "logs and reports", deployment.output, 0
    made = _made(deployment)
    if deployment.kind.engine_files and checkpoint.STAGE not in made:  # pytorch loads the model as it is
        yield "checkpoint", directory, max(0, size - _begun(directory))
    if deployment.kind.vendor_build and build_plan.STAGE not in made:
        yield "engines", engines, size
    if not os.path.lexists(model.path):
        yield "model", model.path, deployment.shape.parameters * DTYPE_BYTES[deployment.model.dtype]


def _made(deployment: Deployment) -> tuple[str, ...]:
    stages = {
        checkpoint.STAGE: (deployment.checkpoint_dir, checkpoint.settings(deployment)),
        build_plan.STAGE: (deployment.engine_dir, {"engine": deployment.engine}),
    }
    made = []
    for stage, (directory, settings) in stages.items():
        with contextlib.suppress(ToolkitError):
            artifacts.require(directory, stage, settings, remake="")
            made.append(stage)
    return tuple(made)


def _built(path: Path) -> Built | None:
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path, largest=LARGEST_CONFIG)
    except ToolkitError as error:
        return Built(path, problem=error.what)
    pretrained = content.get("pretrained_config")
    mapping = pretrained.get("mapping") if isinstance(pretrained, dict) else None
    tp, pp = (mapping.get("tp_size"), mapping.get("pp_size")) if isinstance(mapping, dict) else (None, None)
    version = content.get("version")
    if not isinstance(version, str) or not isinstance(tp, int) or not isinstance(pp, int):
        return Built(path, problem="has no version, or no mapping of its ranks")
    return Built(path, version, tp, pp, sm=_sm(path.parent))


def _sm(directory: Path) -> str:
    with contextlib.suppress(ToolkitError):
        if lock := artifacts.read_lock(directory):
            return str(lock.settings.get("sm") or "")
    return ""


def _begun(directory: Path) -> int:
    """Bytes of rank files that an interrupted conversion has on disk. It gives them their full length at its start."""
    partial = directory.with_name(directory.name + ".partial")
    return sum(path.stat().st_size for path in partial.glob("rank*.safetensors"))


def _nearest_folder(path: Path) -> Path:
    # Unlike Path.is_dir, os.path.isdir never raises.
    return next(folder for folder in (path, *path.parents) if os.path.isdir(folder))  # noqa: PTH112


def _port(deployment: Deployment, name: str) -> Port:
    address = f"{deployment.serving.host}:{getattr(deployment.serving, name)}"
    try:
        check_port(deployment, name)
    except ToolkitError as error:
        return Port(name, address, error.what.removeprefix(f"serving.{name}: "), error.hint or "")
    return Port(name, address)


def _shared_memory(deployment: Deployment) -> int:
    from google.protobuf.text_format import ParseError

    try:
        return shared_memory_needed(deployment)
    except (ParseError, OSError, ValueError):  # a damaged repository, which `toolkit serve` refuses by name
        return deployment.ranks_here * REHEARSAL_SEGMENT_BYTES
