"""Builds TensorRT engines: runs `trtllm-build`, and keeps the ranks that it has finished.

The program writes to `engine.building`, next to the engine directory. That folder stays when a build is interrupted,
and its whole ranks are not built again. trtllm-build has no option to build single ranks. But it fails fast on a rank
whose checkpoint file is missing, and still builds the others (parallel_build in tensorrt_llm/commands/build.py). So the
next build gets a checkpoint with only the ranks that are left. With one worker the first failure ends the program. Then
all ranks are built again, with the measured times in the timing cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from toolkit import checkpoint
from toolkit.config.deployment import Deployment
from toolkit.engine.build_plan import STAGE, BuildPlan, Progress
from toolkit.engine.source import find_source
from toolkit.engine.tensorrt.flags import arguments, changed
from toolkit.engine.tensorrt.log import BuildLog
from toolkit.engine.tensorrt.plan import needs_of, settings_of
from toolkit.engine.tensorrt.run import run
from toolkit.engine.tensorrt.work import PROGRAM, Work, another_release
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.files.artifacts import digest_of, is_current, replace_stage
from toolkit.files.file_lock import FileLock, file_lock
from toolkit.runtime import end_by_force, wrap


def build_tensorrt(plan: BuildPlan, progress: Progress) -> bool:
    """See `toolkit.engine.run`."""
    deployment, source = plan.deployment, find_source(plan, progress)
    if plan.built_from == source.digest:
        return False
    inputs, settings = {checkpoint.STAGE: source.digest}, settings_of(plan)
    with file_lock(deployment.output / "build.lock", "is being built by") as lock:
        if is_current(deployment.engine_dir, STAGE, inputs, settings):
            return False  # another process has finished it since the plan was made
        work = Work(deployment, source.directory, digest_of([inputs, settings]))
        done = work.done()
        if len(done) < deployment.mapping.world_size:
            _build(plan, work, done, progress, lock)
        config = work.checked_config()
        replace_stage(
            deployment.engine_dir,
            STAGE,
            inputs=inputs,
            settings=settings,
            versions={"toolkit": distribution.VERSION, "engine": config["version"]},
            write=work.hand_over,
        )
        shutil.rmtree(work.directory, ignore_errors=True)
    return True


def _build(plan: BuildPlan, work: Work, done: set[int], progress: Progress, lock: FileLock) -> None:
    """Run the program for the ranks that are left. Raises ToolkitError unless all are on disk then."""
    deployment, flags = plan.deployment, list(plan.flags)
    ranks = set(deployment.mapping.ranks)
    if done and plan.workers > 1:
        flags = changed(flags, checkpoint_dir=str(work.checkpoint_without(done)))
    else:
        done = set()
    whole = set(done)

    def tell(log: BuildLog) -> None:
        if log.version and log.version != deployment.engine_options.version:
            raise another_release(deployment, log.version)
        # A line does not say which rank has been written. While no rank is being written, all begun ones are whole.
        if log.begun and log.written == len(log.begun) and not log.begun <= whole:
            whole.update(log.begun)
            work.mark(whole)
        progress(len(done) + log.written, len(ranks))

    progress(len(done), len(ranks))
    needs = needs_of(plan)
    wrapped = wrap(deployment, [PROGRAM, *arguments(flags)], needs)
    log, code = run(wrapped, work.directory, log_file(deployment), tell, end_by_force(deployment, needs), lock)
    if code == 0:  # no rank has failed
        whole |= {rank for rank in ranks if work.file(rank).is_file()}
        work.mark(whole)
    if whole == ranks and (code == 0 or done):
        return
    what, hint = log.failure(killed=code < 0 or code > 128)
    hint = (hint or f"The whole log is in {log_file(deployment)}.").format(workers=plan.workers)
    if code == 0:
        what = f"ended without an error, but did not write rank {', '.join(map(str, sorted(ranks - whole)))}"
    kept = f" ({len(whole)} of {len(ranks)} ranks are kept)" if whole and plan.workers > 1 else ""
    raise ToolkitError(f"{PROGRAM}: {what}{kept}", where=log_file(deployment), hint=hint)


def log_file(deployment: Deployment) -> Path:
    """Where the output of trtllm-build is written."""
    return deployment.output / "build.log"
