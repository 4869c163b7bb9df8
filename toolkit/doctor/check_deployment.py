"""Checks the model of a deployment, the disks that it writes to, its engines and its ports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.config.fallbacks import fallbacks_of
from toolkit.doctor.check import Check, Status, gb, needs_gpus, place, verdict
from toolkit.doctor.check_gpus import of_ranks
from toolkit.doctor.machine import Machine
from toolkit.doctor.paths import NO_TOKENIZER, TOKENIZER_FROM
from toolkit.engine import plan_build
from toolkit.engine.build_plan import STAGE
from toolkit.engine.rehearsal.build import VERSION
from toolkit.errors import ToolkitError
from toolkit.serve.preflight import check_made
from toolkit.sizing.memory import plan_memory

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def model(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that the model is there and can be read."""
    if machine.places is None:
        return
    found = machine.places.model
    if found.problem:
        yield Check("model", "error", f"{place(found.path)}: {found.problem}", "", found.fix)
    else:
        files = f"{found.weights} file{'s' if found.weights > 1 else ''} of weights, {gb(found.weight_bytes)}"
        yield Check("model", "ok", f"{place(found.path)}: {files}")


def disks(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that each disk can be written and has room for what is to come."""
    for disk in machine.places.disks if machine.places else ():
        folder = place(disk.folder)
        if not disk.writable:
            fix = "Set `output` to a folder of yours, or change that folder's owner."
            yield Check("disk", "error", f"{folder} cannot be written", "", fix)
            continue
        to_come = {what: size for what, size in disk.to_come.items() if size}
        parts = " + ".join(f"{gb(size)} {what}" for what, size in to_come.items())
        needed = parts if len(to_come) < 2 else f"{gb(sum(to_come.values()))} = {parts}"
        fix = "Free space there, or set `output` to a larger disk."
        good = disk.free_bytes >= sum(to_come.values())
        yield verdict("disk", good, f"{gb(disk.free_bytes)} free on the disk of {folder}", needed, fix)


def engines(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Whether the engines can be built here. If not, they have to be there. Engine pytorch has none."""
    if machine.places is None or deployment is None or not deployment.kind.engine_files:
        return
    try:
        plan_build(deployment, gpus=machine.gpus)
    except ToolkitError as error:
        where = place(deployment.engine_dir)
        made = STAGE in machine.places.made
        yield verdict("engines", made, f"in {where}" if made else error.what, "", error.hint or "", "warning")


def built(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Whether the engine is for this deployment. In a rehearsal a wrong one is a warning: it is built in seconds."""
    if machine.places is None or machine.places.built is None or deployment is None or not deployment.kind.engine_files:
        return
    engine = machine.places.built
    status: Status = "error" if needs_gpus(deployment) else "warning"
    fix = f"Build it again: {deployment.command('build')}"
    if engine.problem:
        yield Check("engine", status, f"{place(engine.path)} {engine.problem}", "", fix)
        return
    version = deployment.engine_options.version if needs_gpus(deployment) else VERSION
    parallel = deployment.parallel
    good = (engine.version, engine.tp, engine.pp) == (version, parallel.tp, parallel.pp)
    found = f"of TensorRT-LLM {engine.version}, for pp {engine.pp} x tp {engine.tp}"
    yield verdict("engine", good, found, f"{version}, pp {parallel.pp} x tp {parallel.tp}", fix, status)


def built_on(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Whether the engine was built on GPUs of the same compute capability (SM): it holds code for no other."""
    if machine.places is None or machine.places.built is None or deployment is None or not deployment.kind.vendor_build:
        return
    sm, here = machine.places.built.sm, sorted({gpu.sm for gpu in of_ranks(machine, deployment) if gpu.sm})
    if sm and here:
        fix = f"Build it on these: {deployment.command('build')}; or serve it on GPUs like those that it was built on."
        yield verdict("engine SM", here == [sm], f"built on SM {sm}", f"SM {', '.join(here)}, of the GPUs here", fix)


def fallbacks(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Whether each of `recovery.fallback` can take over, fits its GPUs and is made: a lost GPU leaves no time to."""
    if deployment is None or not deployment.recovery.fallback:
        return
    try:
        each = fallbacks_of(deployment)
    except ToolkitError as error:
        yield Check("fallback", "error", error.what, "", error.hint or "")
        return
    for fallback in each:
        name, size = f"fallback {fallback.name}", fallback.mapping.world_size
        try:
            tokens, longest = plan_memory(fallback).pool_tokens, fallback.limits.max_seq_len
            if fallback.kind.on_gpus and tokens < longest:
                what = f"does not fit {size} GPUs: its KV pool holds {tokens:,} tokens of max_seq_len {longest:,}"
                raise ToolkitError(what, hint="Name one with more GPUs, or with a smaller limits.max_seq_len.")
            check_made(fallback)
        except ToolkitError as error:
            yield Check(name, "error", error.what, "", error.hint or "")
            continue
        yield Check(name, "ok", f"made, for {size} of {deployment.mapping.world_size} GPUs")


def tokenizer(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """The part of the model that serving an engine needs. For the preflight; the doctor judges the whole model."""
    if machine.places is not None and not machine.places.model.tokenizer:
        yield Check("model", "error", f"{place(machine.places.model.path)}: {NO_TOKENIZER}", "", TOKENIZER_FROM)


def ports(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that the ports of every replica are free."""
    if machine.places is None:
        return
    found = machine.places.ports
    if machine.places.running is not None:
        addresses = ", ".join(port.address for port in found)
        yield Check("ports", "ok", f"{addresses}: this deployment is running (process {machine.places.running})")
        return
    for port in found:
        if port.problem:
            yield Check(port.name, "error", port.problem, "", port.fix)
    if free := ", ".join(port.address for port in found if not port.problem):
        yield Check("ports", "ok", f"{free}: free")


def nodes(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Whether this node can join the others: its address, its certificate, its ports there, and etcd."""
    if machine.places is None or machine.places.nodes is None or deployment is None:
        return
    found = machine.places.nodes
    if found.problem:
        yield Check("nodes", "error", found.problem, "", found.fix)
    else:
        etcd = ", ".join(deployment.gateway.etcd)
        yield Check("nodes", "ok", f"this one is {found.address}, role {deployment.gateway.role}; etcd at {etcd}")


def group(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Whether this node can serve its part of a group over several nodes."""
    if machine.places is None or machine.places.group is None or deployment is None:
        return
    found = machine.places.group
    if found.problem:
        yield Check("group", "error", found.problem, "", found.fix)
    else:
        part = f"{deployment.ranks_here} of {deployment.all_ranks} ranks"
        yield Check("group", "ok", f"this node is {found.address}, for {part}")


RULES = (model, disks, engines, built, built_on, fallbacks, ports, nodes, group)
