"""Writes docs/reference/cli.md from the commands' own --help. Run `make docs`; a test checks that it is current."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from toolkit.cli.main import COMMANDS, cli

HEAD = """# Command line reference

`make docs` makes this page from the commands' own `--help`. Do not edit it. `CONFIG` is a YAML file such as those in
`build_configs/`. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 1 an error, in one line; 2 wrong usage. For `loadtest`, `compare` and `drill` 0, 1 and 2 are
verdicts, and everything else is 3 ([verdicts](verdicts.md)).
"""


def reference() -> str:
    """The text of docs/cli.md."""

    def usage(*arguments: str) -> str:
        result = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="toolkit", terminal_width=100)
        return f"```\n{result.output.rstrip()}\n```\n"

    parts = [HEAD, usage()]
    parts += [f"## toolkit {command}\n\n{usage(command)}" for command in COMMANDS]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "reference/cli.md").write_text(reference(), encoding="utf-8")
