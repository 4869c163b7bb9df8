from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, next_command, note
from toolkit.cli.progress import progress

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option(
    "--checkpoint",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Build from this TensorRT-LLM checkpoint, whatever tool wrote it. Convert nothing.",
)
@dry_run_option
def build(deployment: Deployment, checkpoint: Path | None, dry_run: bool) -> None:
    """Convert the model, then build the engines: one file for each rank. Those of recovery.fallback, too.

    With engine tensorrt, trtllm-build builds them. --dry-run prints its command, and where each flag comes from. After
    an interruption the next build goes on with the ranks that are left.
    """
    from toolkit.config.fallbacks import fallbacks_of
    from toolkit.engine import dry_run as describe

    if dry_run:
        return click.echo(describe(deployment, checkpoint))
    fallbacks = fallbacks_of(deployment)
    _build(deployment, checkpoint)
    for fallback in fallbacks:
        note(f"fallback {fallback.name}:")
        _build(fallback, None)
    next_command(deployment, "repo")


def _build(deployment: Deployment, checkpoint: Path | None) -> None:
    from toolkit.checkpoint import convert
    from toolkit.engine import plan_build, run
    from toolkit.model.tokenizer import foreseen

    plan = plan_build(deployment, checkpoint)
    for line in plan.lines:
        note(line)
    if plan.needs_gpus:
        from toolkit.doctor.preflight import check_build

        check_build(plan, note)
    for line in foreseen(deployment.model.path, deployment.shape.vocab_size):
        note(f"warning: {line}")
    if checkpoint is None:
        with progress("convert") as report:
            converted = convert(deployment, report)
        note("converted" if converted else "already converted from the same source")
    with progress("build", unit="ranks") as report:
        built = run(plan, report)
    note("built" if built else "already built from the same checkpoint; nothing to do")
    click.echo(deployment.engine_dir)
