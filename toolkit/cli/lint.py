from __future__ import annotations

import sys
from pathlib import Path

import click

from toolkit.cli.common import counted, json_option, note, print_json


@click.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),  # lint() says in one line why it cannot be read
    help="Compare with this engine directory, not with gpt_model_path.",
)
@click.option("--release", metavar="X.Y", help="Release of TensorRT-LLM. Default: the engine's, or the latest.")
@click.option("--github", is_flag=True, help="Print workflow commands, which GitHub shows at the lines.")
@json_option
def lint(repository: Path, engine: Path | None, release: str | None, github: bool, as_json: bool) -> None:
    """Find mistakes in a Triton model repository, without Triton and without a GPU.

    The repository may come from others, for example from NVIDIA's templates. With an error, Triton or the backend does
    not start or answers wrongly; a warning is about a default or a limit. Exit codes: 0 no error, 1 errors.
    """
    from toolkit.lint import LEVELS
    from toolkit.lint import lint as run

    findings = run(repository, engine, release)
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        counts = {"errors": errors, "warnings": len(findings) - errors}
        print_json({**counts, "levels": dict(LEVELS), "findings": [finding.data() for finding in findings]})
    else:
        for finding in findings:
            click.echo(finding.annotation() if github else finding)
        warnings = counted(len(findings) - errors, "warning")
        note(f"{counted(errors, 'error')}, {warnings}" if findings else "nothing found")
    if errors:
        sys.exit(1)
