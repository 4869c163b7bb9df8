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
    help="Build from this TensorRT-LLM checkpoint, whoever wrote it, and convert nothing.",
)
@dry_run_option
def build(deployment: Deployment, checkpoint: Path | None, dry_run: bool) -> None:
    """Convert, then build the engines: one file a rank.

    With engine tensorrt by trtllm-build; --dry-run prints its command, with where each flag comes from. A build that
    was cut off goes on with the ranks that are left.
    """
    from toolkit.checkpoint import convert
    from toolkit.doctor.preflight import check as check_machine
    from toolkit.engine import build as run
    from toolkit.engine import dry_run as describe
    from toolkit.engine import require_buildable
    from toolkit.model.tokenizer import foreseen

    if dry_run:
        return click.echo(describe(deployment, checkpoint))
    for line in require_buildable(deployment, checkpoint):
        note(line)
    check_machine(deployment, "build", note, checkpoint)
    for line in foreseen(deployment.model.path, deployment.shape.vocab_size):
        note(f"warning: {line}")
    if checkpoint is None:
        with progress("convert") as report:
            converted = convert(deployment, report)
        note("converted" if converted else "already converted from the same source")
    with progress("build", unit="ranks") as report:
        built = run(deployment, report, checkpoint)
    note("built" if built else "already built from the same checkpoint; nothing to do")
    click.echo(deployment.engine_dir)
    next_command(deployment, "repo")
