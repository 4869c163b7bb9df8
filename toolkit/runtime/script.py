"""A command as a shell script that runs as it stands. A line above each option says where it comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from toolkit.config.deployment import Deployment
from toolkit.errors import printable
from toolkit.runtime.needs import Needs, Part, Wrapped
from toolkit.runtime.wrap import wrap


def script(deployment: Deployment, command: Sequence[str] | Sequence[Part], needs: Needs) -> str:
    """The whole script, as text. `command` is as `wrap` takes it.

    It holds no secrets: it takes them from the environment when it is started. Raises ToolkitError as `wrap` does.
    """
    return "\n".join(_lines(deployment, wrap(deployment, command, needs), needs)) + "\n"


def _lines(deployment: Deployment, wrapped: Wrapped, needs: Needs) -> Iterator[str]:
    yield "#!/usr/bin/env bash"
    yield f"# Made by the toolkit from {printable(str(deployment.file))}, runtime: {deployment.runtime.kind}."
    yield "set -euo pipefail"
    yield ""
    for path in needs.writes:
        yield f"mkdir -p -- {shlex.quote(str(path.absolute()))}"
    for name, value in wrapped.environment.items():
        yield f"export {name}={shlex.quote(value)}"
    for name, source in wrapped.secrets.items():
        yield f"# {source} is a secret: this script takes it from its environment, if it is set there."
        if name != source:
            yield f'if [ -n "${{{source}+set}}" ]; then export {name}="${source}"; fi'
    yield ""
    yield "command=("
    for part in wrapped.parts:
        yield f"  # {printable(part.why)}"
        yield from (f"  {shlex.join(line)}" for line in _by_options(part.arguments))
    yield ")"
    yield "# In place of this shell, so that signals reach it."
    yield 'exec "${command[@]}"'


def _by_options(arguments: Sequence[str]) -> Iterator[list[str]]:
    """A line for each option with its values. In an array of bash a line break separates words as a space does."""
    line: list[str] = []
    for argument in arguments:
        if line and argument.startswith("--"):
            yield line
            line = []
        line.append(argument)
    yield line
