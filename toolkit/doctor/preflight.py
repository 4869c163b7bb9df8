"""Checks the machine before engines are built and before a group is started on GPUs, by the doctor's rules.

The first error ends the command, in seconds instead of after hours of conversion or minutes of loading. What is wrong
in the YAML, or not made yet, comes before what the machine lacks: it is the same on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.config.capabilities import check_can_be_served
from toolkit.doctor import check_deployment, check_faults, check_gpus, check_host, check_links, check_programs
from toolkit.doctor.check import Check, Rule
from toolkit.doctor.check_settings import RULES as SETTINGS
from toolkit.doctor.machine import Machine, look
from toolkit.doctor.ranks import gpus_left
from toolkit.errors import ToolkitError
from toolkit.machine.visible import VISIBLE, visible_to_cuda
from toolkit.runtime import require_backend
from toolkit.serve.preflight import check_made
from toolkit.sizing.host import rank_bytes

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.engine.build_plan import BuildPlan

Warn = Callable[[str], None]
IN_DOUBT = ("driver",)
"""Errors of the doctor that end no command: images run on older drivers too (docs/reference/doctor.md)."""


def some_gpu(machine: Machine, _deployment: Deployment | None) -> Iterator[Check]:
    """One GPU is enough to build on: ranks wait for each other."""
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


def check_build(plan: BuildPlan, warn: Warn) -> None:
    """Raise a ToolkitError, one line with the fix, for the first thing that keeps this machine from the build.

    `warn` gets a line for each thing that works badly. For plans that need GPUs.
    """
    deployment = plan.deployment
    writes = ("engines",) if plan.given else ("checkpoint", "engines")
    _judge(_build_rules(plan), _writing(look(deployment, plan.gpus), writes), deployment, warn)


def _build_rules(plan: BuildPlan) -> tuple[Rule, ...]:
    def room(machine: Machine, _deployment: Deployment | None) -> Iterator[Check]:
        """Rank r is built on GPU r modulo the workers, which holds its weights while kernels are tried."""
        gpus = gpus_left(machine)[: plan.workers]
        largest = max(rank_bytes(plan.deployment))
        if machine.places is None or machine.places.running is None:
            yield from check_gpus.use_of(gpus, {gpu.index: largest for gpu in gpus})

    return (
        *(some_gpu, check_gpus.opened, check_gpus.model, room, check_gpus.mig, check_gpus.driver),
        *check_faults.RULES,
        *(check_programs.container, check_programs.tensorrt_llm),
        # Another tool's checkpoint takes the place of the model.
        *(() if plan.given else (check_deployment.model,)),
        check_deployment.disks,
    )


def check_serve(deployment: Deployment, warn: Warn) -> None:
    """As `check_build`, for a group. Its engine and its repository are checked before the machine.

    A rehearsal has checks of its own (toolkit/serve/preflight.py).
    """
    check_can_be_served(deployment)
    if not deployment.kind.on_gpus:
        return
    check_made(deployment)
    machine = _writing(look(deployment), ())  # only logs
    # An engine needs the tokenizer alone. Without an engine the whole model is loaded.
    model = check_deployment.tokenizer if deployment.kind.engine_files else check_deployment.model
    _judge((*SERVE, model), machine, deployment, warn)
    if machine.programs.container is not None:
        require_backend(deployment, deployment.kind.triton_backend)


def _writing(machine: Machine, stages: tuple[str, ...]) -> Machine:
    """The machine, whose disks are to take what these stages write, and nothing else."""
    if machine.places is None:
        return machine
    disks = (
        replace(disk, to_come={stage: size for stage, size in disk.to_come.items() if stage in stages})
        for disk in machine.places.disks
    )
    return replace(machine, places=replace(machine.places, disks=tuple(disks)))


def _judge(rules: Iterable[Rule], machine: Machine, deployment: Deployment, warn: Warn) -> None:
    for check in (check for rule in rules for check in rule(machine, deployment)):
        if check.status == "error" and check.name not in IN_DOUBT:
            raise ToolkitError(_line(check), hint=check.fix)
        if check.status != "ok":
            warn(str(ToolkitError(f"warning: {_line(check)}", hint=check.fix)))


def _line(check: Check) -> str:
    return f"{check.name}: {check.found}" + (f"; needs {check.needed}" if check.needed else "")
