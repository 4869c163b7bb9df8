from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import json_option, next_command, note, optional_deployment, print_json

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@optional_deployment
@json_option
def doctor(deployment: Deployment | None, as_json: bool) -> None:
    """Compare this machine with what the deployment needs; without CONFIG, with what a rehearsal needs.

    GPUs, memory, disk, programs, ports, each ok, a warning or an error with what to do. Changes nothing.
    Exit codes: 0 no error, 1 errors.
    """
    from toolkit.doctor import examine
    from toolkit.doctor.report import doctor_data, doctor_text

    diagnosis = examine(deployment)
    if as_json:
        print_json(doctor_data(diagnosis))
    else:
        from rich.console import Console

        Console(highlight=False, width=100).print(doctor_text(diagnosis))
    if diagnosis.count("error"):
        sys.exit(1)
    if deployment is None:
        note("next: toolkit doctor CONFIG")
    elif not diagnosis.running:
        next_command(deployment, "build")
