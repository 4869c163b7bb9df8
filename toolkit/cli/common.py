"""What every command shares: the CONFIG argument, options, and output for people or machines.

Commands import the rest of the toolkit inside their functions, to keep `toolkit --help` fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.errors import ToolkitError, cannot_use, harmless

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

COULD_NOT_RUN = 3
"""The same as in toolkit.slo.verdict.Outcome, which would be slow to import."""


class VerdictCommand(click.Command):
    """A command whose exit codes 0, 1 and 2 are verdicts. Wrong usage, a bad input and a crash exit with 3."""

    wrong_usage = COULD_NOT_RUN

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _without_verdict():
            return super().make_context(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:
        with _without_verdict():
            return super().invoke(context)


@contextlib.contextmanager
def _without_verdict() -> Iterator[None]:
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
    """Add CONFIG and --engine to a command, which gets them as one validated `deployment`."""
    return _with_deployment(command, required=True)


def optional_deployment(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `deployment_options`, with an optional CONFIG: without it `deployment` is None."""
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
    # click keeps parameters in reverse order: CONFIG and --engine come before the command's own.
    own = getattr(command, "__click_params__", [])
    wrapped.__click_params__ = own + wrapped.__click_params__  # type: ignore[attr-defined]
    return wrapped


def one_protocol(http: bool, grpc: bool) -> str | None:
    """The protocol that --http or --grpc chooses; None without them. Raises UsageError for both."""
    if http and grpc:
        raise click.UsageError("--http and --grpc contradict each other. Give one of them.")
    return "http" if http else "grpc" if grpc else None


openai_option = click.option("--openai", is_flag=True, help="Use OpenAI's API, at the door of `toolkit up`.")
direct_option = click.option("--direct", is_flag=True, help="Use the replicas' own ports, not the door.")


def door_target(
    deployment: Deployment, protocol: str, target: str | None, *, openai: bool, direct: bool
) -> tuple[str | None, str | None]:
    """The URL to use and OpenAI's name of the model; None for the replicas' own ports, and for no such name.

    While `toolkit up` runs, that is its door. Raises UsageError for options that contradict each other.
    """
    if target is not None and (openai or direct):
        raise click.UsageError("--target cannot be combined with --openai or --direct.")
    if openai and direct:
        raise click.UsageError("--openai and --direct contradict each other: only the door has OpenAI's API.")
    if target is not None or direct:
        return target, None
    from toolkit.gateway.door import door_url

    url = door_url(deployment, "http" if openai else protocol)
    if not openai:
        return url, None
    if url is None:
        hint = f"Start it: {deployment.command('up')}"
        raise ToolkitError("--openai needs the door of toolkit up", where=deployment.file, hint=hint)
    return f"openai+{url}", deployment.served_name


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")


def print_json(data: Any) -> None:
    """Print data as indented JSON."""
    click.echo(json.dumps(data, indent=2, default=str))


def tell(result: object) -> None:
    """Print a result for the person at the terminal. It may contain the text of another program."""
    click.echo(harmless(str(result)))


def note(message: str) -> None:
    """Print a line for the person at the terminal, on stderr: stdout holds only results."""
    click.echo(harmless(message), err=True)


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 error`, `2 errors`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def job_summary(text: str) -> None:
    """Add Markdown to the summary of the GitHub Actions job, if this runs in one."""
    from toolkit.reports.loadtest.markdown import SUMMARY_VARIABLE, append_to_job_summary

    try:
        if append_to_job_summary(text):
            note(f"summary: added to {os.environ[SUMMARY_VARIABLE]}")
    except ToolkitError as error:  # the verdict and its exit code do not change
        note(f"note: {error}")


def next_command(deployment: Deployment, command: str, file: Path | None = None) -> None:
    """Print the command that comes next. `file` is the deployment's file if it has just been written."""
    if command == "build" and not deployment.kind.engine_files:  # there is nothing to build
        command = "repo"
    note(f"next: {shlex.join(['toolkit', command, str(file)]) if file else deployment.command(command)}")
