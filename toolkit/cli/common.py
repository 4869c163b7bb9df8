"""What every command shares: the CONFIG argument, output for people or machines, progress on stderr.

Commands import the rest of the toolkit inside their functions, so that `toolkit --help` stays instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.plain_progress import PlainProgress
from toolkit.errors import ToolkitError, cannot_use, harmless

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Progress = Callable[[int, int], None]
COULD_NOT_RUN = 3
"""toolkit.slo.verdict.Outcome has it too, which would be heavy to import."""


class VerdictCommand(click.Command):
    """Exit codes 0, 1 and 2 are verdicts: wrong usage, a bad input and a crash, which are none, become 3."""

    wrong_usage = COULD_NOT_RUN

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _no_verdict():
            return super().make_context(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:
        with _no_verdict():
            return super().invoke(context)


@contextlib.contextmanager
def _no_verdict() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.exit_code = COULD_NOT_RUN  # type: ignore[misc]
        raise
    except ToolkitError as error:
        error.exit_code = COULD_NOT_RUN
        raise
    except (click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            refused = cannot_use(error)
            refused.exit_code = COULD_NOT_RUN
            raise refused from error
        traceback.print_exc()
        sys.exit(COULD_NOT_RUN)


engine_option = click.option(
    "--engine",
    metavar="NAME",
    help="Use this engine instead of the YAML's: tensorrt, pytorch, rehearsal.",
)


def deployment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """CONFIG and --engine, handed to the command as one validated `deployment`."""
    return _with_deployment(command, required=True)


def optional_deployment(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same where CONFIG may be left out: `deployment` is None then."""
    return _with_deployment(command, required=False)


def _with_deployment(command: Callable[..., Any], required: bool) -> Callable[..., Any]:
    @click.argument("config", type=click.Path(path_type=Path), required=required)
    @engine_option
    def wrapped(config: Path | None, engine: str | None, **options: Any) -> Any:
        from toolkit.config.load import load_deployment

        if config is None and engine is not None:
            raise click.UsageError("--engine needs a CONFIG.")
        return command(deployment=load_deployment(config, engine) if config else None, **options)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    # click keeps parameters last first: CONFIG and --engine come before the command's own.
    own = getattr(command, "__click_params__", [])
    wrapped.__click_params__ = own + wrapped.__click_params__  # type: ignore[attr-defined]
    return wrapped


def one_protocol(http: bool, grpc: bool) -> str | None:
    """What --http and --grpc choose, None without either. Raises UsageError for both."""
    if http and grpc:
        raise click.UsageError("--http and --grpc contradict each other. Give one of them.")
    return "http" if http else "grpc" if grpc else None


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def print_json(data: Any) -> None:
    """Print data as indented JSON."""
    click.echo(json.dumps(data, indent=2, default=str))


def tell(result: object) -> None:
    """A result for the person at the terminal, in which another program's text may stand."""
    click.echo(harmless(str(result)))


def note(message: str) -> None:
    """A line for the person at the terminal: stderr, so that stdout holds results only."""
    click.echo(harmless(message), err=True)


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 error`, `2 errors`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def job_summary(text: str) -> None:
    """Add Markdown to the summary of the GitHub Actions job that this runs in, if it does."""
    from toolkit.reports.loadtest.markdown import SUMMARY_VARIABLE, append_to_job_summary

    try:
        if append_to_job_summary(text):
            note(f"summary: added to {os.environ[SUMMARY_VARIABLE]}")
    except ToolkitError as error:  # the verdict stands all the same, and so does its exit code
        note(f"note: {error}")


def next_command(deployment: Deployment, command: str, file: Path | None = None, options: Sequence[str] = ()) -> None:
    """Say the command that comes next; of `file` if the deployment has just been written there."""
    if command == "build" and not deployment.kind.engine_files:  # which has no engines
        command = "repo"
    note(f"next: {shlex.join(['toolkit', command, str(file or deployment.file), *options])}")


@contextlib.contextmanager
def progress(label: str, unit: str = "B") -> Iterator[Progress]:
    """A progress bar on stderr for work that reports (done, total); lines now and then where that is no terminal."""
    if not sys.stderr.isatty():
        yield PlainProgress(label, unit, note)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *amount, TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
