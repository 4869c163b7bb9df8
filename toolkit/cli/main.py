"""The command line: a table of commands. Each is a small module, imported when it is called."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from toolkit.errors import ToolkitError, cannot_use, is_unicode, shown
from toolkit.files.distribution import VERSION

COMMANDS = (
    *("init", "plan", "calibrate", "doctor", "convert", "verify", "build", "repo"),
    *("lint", "migrate", "serve", "stop", "up", "restart", "down", "status", "monitor", "drill", "tune", "deploy"),
    *("ask", "loadtest", "compare", "known-truth", "sample"),
)
"""In the order of use. Command NAME is the function NAME of toolkit.cli.NAME, with _ in place of -."""


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        name = name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"toolkit.cli.{name}"), name)
        return command

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        name, command, rest = super().resolve_command(context, arguments)
        for argument in rest:
            if not argument.isascii() and not is_unicode(argument):
                error = click.UsageError(f"{shown(argument)} is not UTF-8 text. Is it a file's name? Rename it.")
                error.exit_code = getattr(command, "wrong_usage", error.exit_code)  # type: ignore[misc]
                raise error
        return name, command, rest


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, message="toolkit %(version)s")
def cli() -> None:
    """Take a Llama checkpoint to a served, load-tested Triton deployment. One YAML describes all of it.

    Try it without a GPU: toolkit COMMAND build_configs/smollm2-rehearsal.yaml
    """


def main() -> None:
    """The `toolkit` program. Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage.

    In loadtest, compare and drill 0, 1 and 2 are verdicts; an error and wrong usage are 3.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # for characters that its encoding lacks, such as ≤ in ISO 8859-1
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except ToolkitError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"error: {cannot_use(error)}", err=True)
        sys.exit(ToolkitError.exit_code)


if __name__ == "__main__":
    main()
