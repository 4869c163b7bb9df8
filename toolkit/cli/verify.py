from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import json_option, note, print_json, tell
from toolkit.cli.progress import progress

if TYPE_CHECKING:
    from toolkit.checkpoint.verify import Verification

DIRECTORY = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=DIRECTORY)
@click.option("--against", required=True, metavar="HF_DIR", type=DIRECTORY, help="The model that it was made from.")
@click.option("--bytes", "elements", is_flag=True, help="Compare the elements. Without --meaning, only these.")
@click.option("--meaning", is_flag=True, help="Compare what the layers compute. Without --bytes, only this.")
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="Use this prompt, not the built-in ones.",
)
@json_option
def verify(
    checkpoint: Path, against: Path, elements: bool, meaning: bool, prompts: tuple[str, ...], as_json: bool
) -> None:
    """Compare a TensorRT-LLM checkpoint from any converter with its Hugging Face model.

    It compares every element of every rank file. Then it runs the sharded model layer by layer next to transformers'
    own layers, in the memory of one layer. Exit codes: 0 the same; 1 different, or an error; 2 wrong usage.
    """
    from toolkit.checkpoint.verify import verify as run

    if prompts and elements and not meaning:
        raise click.UsageError("--prompt is for --meaning: add it, or leave out --bytes.")
    parts = {"bytes": elements or not meaning, "meaning": meaning or not elements}
    show(run(checkpoint, against, **parts, prompts=prompts, bar=progress), as_json)


def show(result: Verification, as_json: bool = False, on_stderr: bool = False) -> None:
    """Print a result. Exit with 1 if something differs."""
    from toolkit.checkpoint.verify import report

    if as_json:
        print_json(report.as_dict(result))
    else:
        for line in report.lines(result):
            (note if on_stderr else tell)(line)
    if not result.same:
        sys.exit(1)
