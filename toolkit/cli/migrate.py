from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, json_option, note, print_json, tell

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.repository.migrate import Twin

PATH = click.Path(path_type=Path)


@click.command()
@deployment_options
@click.option("--output", metavar="FILE", type=PATH, help="The twin's file.  [default: CONFIG-pytorch.yaml]")
@click.option("--apply", "moves", is_flag=True, help="Move the replicas that are up to the twin, one after the other.")
@click.option("--rollback", "back", is_flag=True, help="Take back what --apply moved, on all nodes.")
@click.option("--with", "new", metavar="FILE", type=PATH, help="Let --apply move to this YAML, and write none.")
@click.option(
    "--allow",
    "allowed",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    default=10,
    show_default=True,
    help="With --apply: by how much a latency may be worse.",
)
@dry_run_option
@json_option
def migrate(
    deployment: Deployment,
    output: Path | None,
    moves: bool,
    back: bool,
    new: Path | None,
    allowed: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the PyTorch twin of a deployment with engines, and list what has no equivalent.

    The twin has no engines to build: TensorRT-LLM loads the model itself. Everything else is the same, so the same
    requests and the same load test work for both.

    With --apply, a replica of `toolkit up` restarts as the twin, behind the same door. It is compared with the others
    under their live traffic. If no latency is worse by more than --allow, the others follow, one after the other; else
    all go back. Exit codes then: 0 moved, 1 rolled back or not tried.

    Of several nodes (gateway.discovery) each moves its own replicas, one node at a time; --rollback on any of them
    takes all back.
    """
    from toolkit.repository.migrate import as_text, twin_of
    from toolkit.repository.migrate import migrate as write
    from toolkit.up.control import ready_to_try, roll_back

    if back:
        if moves or new or output or dry_run:
            raise click.UsageError("--rollback stands alone, but for --json.")
        roll_back(deployment, note)
        return print_json({"rolled_back": True}) if as_json else tell("rolled back: all run the engine of their YAML")

    if math.isnan(allowed):
        raise click.UsageError("--allow: expected a number of per cent, got nan.")
    if new and (output or not moves):
        raise click.UsageError("--with needs --apply, and takes the place of --output.")
    if moves and dry_run:
        raise click.UsageError("--apply has no --dry-run. Without --apply, --dry-run shows the twin.")
    if new:
        return _move(deployment, new, allowed, None, as_json)
    twin = twin_of(deployment, output)
    if moves:
        ready_to_try(deployment, over_nodes=True)  # before anything is written
    written = None if dry_run else write(twin)
    if moves:
        return _move(deployment, twin.file, allowed, twin, as_json)
    if as_json:
        return print_json(_data(twin))
    click.echo(as_text(twin))
    if dry_run:
        return click.echo(f"\n{twin.text}", nl=False)
    note(f"{twin.file}: {'written' if written else 'is up to date; nothing to do'}")
    note(f"next: toolkit plan {twin.file}")


def _move(deployment: Deployment, new: Path, allowed: float, twin: Twin | None, as_json: bool) -> None:
    """Move the replicas, and print how that ended."""
    from toolkit.config.load import load_deployment
    from toolkit.up.control import move

    moved = move(deployment, load_deployment(new), allowed, note)
    if as_json:
        about = _data(twin) if twin else {"file": str(new)}
        print_json({**about, "moved": moved.taken, "reason": moved.reason})
    else:
        tell(f"{'moved' if moved.taken else 'rolled back'}: {moved.reason}")
    if not moved.taken:
        sys.exit(1)
    note(f"to go back: {deployment.command('restart', '--rolling', '--with', str(deployment.file))}")
    note(f"to stay after the next start: toolkit up {new}")


def _data(twin: Twin) -> dict[str, object]:
    return {"file": str(twin.file), "changes": [asdict(change) for change in twin.changes]}
