from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import json_option, next_command, note, optional_deployment, print_json

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@optional_deployment
@click.option(
    "--bundle",
    metavar="[FILE.tar.gz]",
    is_flag=False,
    flag_value=Path(),
    type=click.Path(path_type=Path),
    help="Also write versions, logs, locks and reports into one file, to send to someone who can help. "
    "It holds no weights and no secrets.",
)
@json_option
def doctor(deployment: Deployment | None, bundle: Path | None, as_json: bool) -> None:
    """Compare this machine with what the deployment needs. Without CONFIG, with what a rehearsal needs.

    Checks GPUs, memory, disk, programs and ports. Each check is ok, a warning, or an error with what to do. Changes
    nothing. Exit codes: 0 no error, 1 errors.
    """
    from toolkit.doctor import examine
    from toolkit.doctor.bundle import write_bundle
    from toolkit.doctor.report import doctor_data, doctor_text

    diagnosis = examine(deployment)
    written = None if bundle is None else write_bundle(diagnosis, None if bundle == Path() else bundle)
    if as_json:
        print_json(doctor_data(diagnosis) | ({"bundle": written.as_data()} if written else {}))
    else:
        from toolkit.reports.terminal import Terminal

        Terminal(width=100).print(doctor_text(diagnosis))
    if written:
        for name, why in written.missing.items():
            note(f"not in the bundle: {name}: {why}")
        note(f"bundle: {len(written.files)} files, {written.size / 1e3:,.0f} kB")
        if not as_json:
            click.echo(written.path)
    if diagnosis.count("error"):
        sys.exit(1)
    if deployment is None:
        note("next: toolkit doctor CONFIG")
    elif not diagnosis.running:
        next_command(deployment, "build")
