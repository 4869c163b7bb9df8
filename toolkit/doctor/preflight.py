"""What is checked before engines are built and before a group is started on GPUs: the doctor's rules that concern it.

The first error ends the command, in seconds instead of after hours of conversion or minutes of loading. What is wrong
in the YAML, or not made yet, comes before what the machine lacks: it is found on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.config.capabilities import check_can_be_served
from toolkit.doctor import check_deployment, check_faults, check_gpus, check_host, check_links, check_programs
from toolkit.doctor.check import Check, Rule, needs_gpus
from toolkit.doctor.check_settings import RULES as SETTINGS
from toolkit.doctor.machine import Machine, look
from toolkit.doctor.paths import Places
from toolkit.doctor.ranks import gpus_left
from toolkit.engine import is_built
from toolkit.errors import ToolkitError
from toolkit.machine.visible import VISIBLE, visible_to_cuda
from toolkit.runtime import require_backend
from toolkit.serve.preflight import check_made
from toolkit.sizing.host import plan_host, rank_bytes

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Stage = Literal["build", "serve"]
IN_DOUBT = ("driver",)
"""Errors of the doctor that end nothing: an image may run on older drivers too (docs/reference/doctor.md)."""


def some_gpu(machine: Machine, _deployment: Deployment | None) -> Iterator[Check]:
    """One is enough to build on: ranks wait for each other."""
    if not machine.gpus.seen:
        fix = machine.gpus.fix or check_gpus.ON_THE_NODE
        yield Check("GPUs", "error", f"no GPU is visible: {machine.gpus.problem}", "one to build on", fix)
        return
    try:
        left = visible_to_cuda(machine.gpus, machine.settings)
    except ToolkitError as error:
        yield Check("GPUs", "error", f"{error.where}: {error.what}", "one to build on", error.hint or "")
        return
    if left is not None and not left.numbers:
        found = f"{VISIBLE} hides every GPU: {left.ended}"
        yield Check("GPUs", "error", found, "one to build on", "Correct or unset it.")


def room(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Rank r is built on GPU r modulo the workers, which holds its weights while kernels are tried."""
    if deployment is None:
        return
    fit = max(1, machine.host.available_bytes // plan_host(deployment).build_rank_bytes)
    gpus = gpus_left(machine)[: deployment.engine_options.workers or fit]
    largest = max(rank_bytes(deployment))
    if machine.places is None or machine.places.running is None:
        yield from check_gpus.use_of(gpus, {gpu.index: largest for gpu in gpus})


BUILD: tuple[Rule, ...] = (
    *(some_gpu, check_gpus.opened, check_gpus.model, room, check_gpus.mig, check_gpus.driver),
    *check_faults.RULES,
    *(check_programs.container, check_programs.tensorrt_llm),
    *(check_deployment.model, check_deployment.disks),
)
SERVE: tuple[Rule, ...] = (
    *check_gpus.RULES,
    *check_links.RULES,
    *check_faults.RULES,
    *SETTINGS,
    *check_host.RULES,
    *(check_programs.container, check_programs.tritonserver, check_programs.backends, check_programs.mpirun),
    *(check_programs.tensorrt_llm, check_deployment.disks, check_deployment.built, check_deployment.built_on),
)
"""Ports are tried by `toolkit serve` itself, which first looks whether the deployment is already being served."""


def check(deployment: Deployment, stage: Stage, warn: Callable[[str], None], checkpoint: Path | None = None) -> None:
    """Raise a ToolkitError, one line with the fix, for the first thing that `stage` cannot do without.

    What works badly is told by `warn`, a line each. A rehearsal needs nothing of this, and what is built nothing more
    to be built. `checkpoint` is one of another tool, which is built from in the place of the model.
    """
    if stage == "serve":
        check_can_be_served(deployment)
    if not needs_gpus(deployment) or (stage == "build" and checkpoint is None and is_built(deployment)):
        return
    if stage == "serve":
        check_made(deployment)
    machine = look(deployment)
    if machine.places is not None:
        machine = replace(machine, places=_to_come(machine.places, stage, checkpoint))
    for check in _checks(machine, deployment, stage, checkpoint):
        if check.status == "error" and check.name not in IN_DOUBT:
            raise ToolkitError(_line(check), hint=check.fix)
        if check.status != "ok":
            warn(str(ToolkitError(f"warning: {_line(check)}", hint=check.fix)))
    if stage == "serve" and machine.programs.container is not None:
        require_backend(deployment, deployment.kind.triton_backend)


def _checks(machine: Machine, deployment: Deployment, stage: Stage, checkpoint: Path | None) -> Iterator[Check]:
    rules = BUILD if stage == "build" else SERVE
    if stage == "serve":
        whole = not deployment.kind.engine_files  # it loads the model itself
        rules = (*rules, check_deployment.model if whole else check_deployment.tokenizer)
    for rule in rules:
        if checkpoint is None or rule is not check_deployment.model:
            yield from rule(machine, deployment)


def _to_come(places: Places, stage: Stage, checkpoint: Path | None) -> Places:
    """What the stage itself writes: serving only logs, and a build from a given checkpoint only engines."""
    writes = () if stage == "serve" else ("engines",) if checkpoint else ("checkpoint", "engines")
    disks = (
        replace(disk, to_come={what: size for what, size in disk.to_come.items() if what in writes})
        for disk in places.disks
    )
    return replace(places, disks=tuple(disks))


def _line(check: Check) -> str:
    return f"{check.name}: {check.found}" + (f"; needs {check.needed}" if check.needed else "")
