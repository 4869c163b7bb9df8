"""Builds TensorRT engines: checks all that can be known before, runs `trtllm-build`, and keeps what it has done.

The program writes beside the engine directory, in `engine.building`, which stays when a build is cut off. Ranks that
are on disk there are not built again: it cannot be told which ranks to build, but a rank whose file is not in the
checkpoint fails at once, and the others of its pool go on (parallel_build in tensorrt_llm/commands/build.py). So the
next build shows it a checkpoint that holds only the ranks that are left. With one worker the first failure ends it, so
then all are built again, with what the timing cache remembers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit import checkpoint, engine, runtime
from toolkit.config.deployment import Deployment
from toolkit.engine.rehearsal_build import build_config
from toolkit.engine.source import find_source
from toolkit.engine.tensorrt.flags import BuildFlag, Places, arguments, derive, sources
from toolkit.engine.tensorrt.log import BuildLog
from toolkit.engine.tensorrt.run import run
from toolkit.engine.tensorrt.work import PROGRAM, Work, work_dir
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.files.artifacts import digest_of, is_current, read_lock, write_stage
from toolkit.files.file_lock import FileLock, file_lock
from toolkit.machine.limits import available_memory
from toolkit.machine.visible import VISIBLE, visible_here
from toolkit.runtime import Needs, end_by_force, require_runtime, wrap
from toolkit.runtime.images import advised
from toolkit.sizing.host import plan_host

TIMING = ("input_timing_cache", "output_timing_cache")
NOT_OF_THE_ENGINE = ("checkpoint_dir", "output_dir", "workers", *TIMING, "log_level")
"""Flags that leave the engine as it is."""


def build_tensorrt(
    deployment: Deployment, progress: Callable[[int, int], None], given: Path | None = None, gpus: int | None = None
) -> bool:
    """See `toolkit.engine.build`; `given` is its `checkpoint`, `gpus` how many there are (default: what NVML sees)."""
    flags = tensorrt_flags(deployment, given, gpus)  # before the checkpoint, which may take minutes to read
    source = find_source(deployment, given, progress)
    inputs, settings = {checkpoint.STAGE: source.digest}, _settings(deployment, flags)
    if is_current(deployment.engine_dir, engine.STAGE, inputs, settings):
        return False
    require_program(deployment)
    with file_lock(deployment.output / "build.lock", "is being built by") as lock:
        if is_current(deployment.engine_dir, engine.STAGE, inputs, settings):
            return False  # another has finished it just now
        work = Work(deployment, source.directory, digest_of([inputs, settings]))
        done = work.done()
        if len(done) < deployment.mapping.world_size:
            _build(deployment, flags, work, done, progress, lock)
        found = work.checked_config()
        made = write_stage(
            deployment.engine_dir,
            engine.STAGE,
            inputs=inputs,
            settings=settings,
            versions={"toolkit": distribution.VERSION, "engine": found["version"]},
            write=work.hand_over,
        )
        shutil.rmtree(work.directory, ignore_errors=True)
    return made


def is_built_tensorrt(deployment: Deployment) -> bool:
    """See `toolkit.engine.is_built`."""
    try:
        source = find_source(deployment, None, lambda done, total: None)
        settings = _settings(deployment, _flags(deployment, deployment.checkpoint_dir, workers=1))
        return is_current(deployment.engine_dir, engine.STAGE, {checkpoint.STAGE: source.digest}, settings)
    except ToolkitError:
        return False


def tensorrt_flags(
    deployment: Deployment, checkpoint_dir: Path | None = None, gpus: int | None = None
) -> list[BuildFlag]:
    """What `trtllm-build` is given here. Raises ToolkitError, one line; `gpus` as of `build_tensorrt`."""
    check_flags(deployment)
    return _flags(deployment, checkpoint_dir or deployment.checkpoint_dir, workers_of(deployment, gpus))


def check_flags(deployment: Deployment) -> list[BuildFlag]:
    """The flags as for one worker. Raises ToolkitError for what is wrong in the YAML, before what the machine lacks."""
    return _flags(deployment, deployment.checkpoint_dir, workers=1)


def _flags(deployment: Deployment, checkpoint_dir: Path, workers: int) -> list[BuildFlag]:
    places = Places(checkpoint_dir, work_dir(deployment), _timing_cache(deployment))
    return derive(deployment, deployment.release, places, workers)


def require_program(deployment: Deployment) -> None:
    """Raise ToolkitError unless `trtllm-build` is here, or the container of `runtime` can be started."""
    if deployment.runtime.kind != "host":
        require_runtime(deployment)
    elif shutil.which(PROGRAM) is None:
        hint = f"Run this inside {advised(deployment)}, or set runtime: docker."
        raise ToolkitError(f"{PROGRAM} is not here", hint=hint)


def _needs(deployment: Deployment, checkpoint_dir: Path, workers: int) -> Needs:
    """The program's needs: rank r is built on GPU r modulo the workers, of the visible GPUs."""
    name, visible = f"toolkit-{deployment.name}-build", visible_here()
    if visible is not None and not visible.numbers:
        raise ToolkitError(f"hides every GPU: {visible.ended}", where=VISIBLE, hint="Correct or unset it.")
    gpus = tuple(range(workers)) if visible is None else visible.numbers[:workers]
    return Needs(reads=(checkpoint_dir,), writes=(deployment.output,), gpus=gpus, name=name)


def script(deployment: Deployment, checkpoint_dir: Path) -> str:
    """The command as a shell script that runs as it stands, with where each flag comes from."""
    workers = deployment.engine_options.workers or max(1, plan_host(deployment).workers)
    flags = _flags(deployment, checkpoint_dir, workers)
    text = runtime.script(deployment, [PROGRAM, *arguments(flags)], _needs(deployment, checkpoint_dir, workers))
    shebang, _, rest = text.partition("\n")
    return "\n".join([shebang, "# Where each flag comes from:", *(f"#   {line}" for line in sources(flags)), rest])


def workers_of(deployment: Deployment, gpus: int | None = None) -> int:
    """Ranks to build at once: one a GPU, as far as free host memory goes. Raises ToolkitError for not even one."""
    if deployment.engine_options.workers is not None:
        return deployment.engine_options.workers
    if gpus is None:
        from toolkit.machine.visible import gpus_here

        gpus = len(gpus_here()) or 1  # none at all is refused by name before a build begins
    needed, free = plan_host(deployment).build_rank_bytes, available_memory()
    if free < needed:
        what = f"building a rank takes about {needed / 1e9:.0f} GB of host memory, {free / 1e9:.0f} GB are free"
        raise ToolkitError(what, where=deployment.file, hint="Free some, or try it with engine.workers: 1.")
    return min(gpus, deployment.mapping.world_size, free // needed)


def _build(
    deployment: Deployment,
    flags: list[BuildFlag],
    work: Work,
    done: set[int],
    progress: Callable[[int, int], None],
    lock: FileLock,
) -> None:
    """Run the program for the ranks that are left. Raises ToolkitError unless all are on disk then."""
    ranks = set(deployment.mapping.ranks)
    workers = int(next(flag.value or 1 for flag in flags if flag.name == "workers"))
    given = flags
    if done and workers > 1:
        view = str(work.checkpoint_without(done))
        given = [BuildFlag(f.name, view, f.source) if f.name == "checkpoint_dir" else f for f in flags]
    else:
        done = set()
    whole = set(done)

    def tell(log: BuildLog) -> None:
        if log.version and log.version != deployment.engine_options.version:
            what = f"engine.version: says {deployment.engine_options.version}, {PROGRAM} is of {log.version}"
            raise ToolkitError(what, where=deployment.file, hint="Correct it, or use the image that holds it.")
        # Lines do not say which rank has been written; when none is being written, all that were begun have been.
        if log.begun and log.written == len(log.begun) and not log.begun <= whole:
            whole.update(log.begun)
            work.mark(whole)
        progress(len(done) + log.written, len(ranks))

    progress(len(done), len(ranks))
    needs = _needs(deployment, work.checkpoint, workers)
    wrapped = wrap(deployment, [PROGRAM, *arguments(given)], needs)
    log, code = run(wrapped, work.directory, log_file(deployment), tell, end_by_force(deployment, needs), lock)
    if code == 0:  # it fails when any rank does
        whole |= {rank for rank in ranks if work.file(rank).is_file()}
        work.mark(whole)
    if whole == ranks and (code == 0 or done):
        return
    what, hint = log.failure(killed=code < 0 or code > 128)
    hint = (hint or f"The whole log is in {log_file(deployment)}.").format(workers=workers)
    if code == 0:
        what = f"ended well, and left out rank {', '.join(map(str, sorted(ranks - whole)))}"
    kept = f" ({len(whole)} of {len(ranks)} ranks are kept)" if whole and workers > 1 else ""
    raise ToolkitError(f"{PROGRAM}: {what}{kept}", where=log_file(deployment), hint=hint)


def _settings(deployment: Deployment, flags: list[BuildFlag]) -> dict[str, Any]:
    return {
        "engine": deployment.engine,
        **build_config(deployment),
        "version": deployment.engine_options.version,
        "gpu": deployment.hardware.gpu,
        "sm": _sm(deployment),
        "flags": {flag.name: flag.value for flag in flags if flag.name not in NOT_OF_THE_ENGINE},
    }


def _sm(deployment: Deployment) -> str | None:
    """The compute capability here, which engines are for; without a GPU in sight, that of the engine that is there."""
    from toolkit.machine.visible import gpus_here

    if gpus := gpus_here():
        return gpus[0].sm or None
    lock = read_lock(deployment.engine_dir)
    return lock.settings.get("sm") if lock else None


def log_file(deployment: Deployment) -> Path:
    """Where the output of trtllm-build is written."""
    return deployment.output / "build.log"


def _timing_cache(deployment: Deployment) -> Path:
    """Kernels' times are of one release and one kind of GPU."""
    return deployment.output / f"timing-{deployment.engine_options.version}-{deployment.hardware.gpu}.cache"
