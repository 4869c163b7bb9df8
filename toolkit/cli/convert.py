from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, next_command, note
from toolkit.cli.progress import progress

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option("--verify", is_flag=True, help="Then compare the checkpoint with the source, as `toolkit verify` does.")
@click.option(
    "--report",
    is_flag=True,
    help="List what the cast does to each tensor.",
)
def convert(deployment: Deployment, report: bool, verify: bool) -> None:
    """Convert the Hugging Face checkpoint to TensorRT-LLM files, one per rank.

    If it is cut off, run it again: it continues from there.
    """
    from toolkit.checkpoint import convert as run
    from toolkit.checkpoint.numerics import Unrepresentable
    from toolkit.model.tokenizer import foreseen

    for line in foreseen(deployment.model.path, deployment.shape.vocab_size):
        note(f"warning: {line}")
    try:
        with progress("convert") as tell:
            written = run(deployment, tell)
    except Unrepresentable:
        if report:
            _print_numbers(deployment)
        raise
    note("converted" if written else "already converted from the same source; nothing to do")
    if report:
        _print_numbers(deployment)
    if verify:
        from toolkit.checkpoint.verify import verify as compare
        from toolkit.cli.verify import show

        show(compare(deployment.checkpoint_dir, deployment.model.path, bar=progress), on_stderr=True)
    click.echo(deployment.checkpoint_dir)
    next_command(deployment, "build")


def _print_numbers(deployment: Deployment) -> None:
    """Print a line for each tensor of the source. Those that cannot be converted come first."""
    from toolkit.checkpoint import numbers

    with progress("read") as tell:
        numbers_of = numbers(deployment, tell)
    line = "{:<50} {:>14} {:>12} {:>10} {:>10} {:>14} {:>14}".format
    click.echo(line("tensor", "elements", "max |x|", "NaN, inf", "overflow", "subnormal", "to zero"))
    for name, tensor in sorted(numbers_of.items(), key=lambda item: (-item[1].not_finite, -item[1].overflow)):
        counts = (f"{count:,}" for count in (tensor.not_finite, tensor.overflow, tensor.subnormal, tensor.zero))
        click.echo(line(name, f"{tensor.elements:,}", f"{tensor.max_abs:.6g}", *counts))
