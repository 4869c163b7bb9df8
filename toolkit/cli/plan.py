from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import engine_option, json_option, next_command, note, print_json, progress
from toolkit.distribution import NAME

if TYPE_CHECKING:
    from toolkit.plan.plan import Plan

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("config", type=PATH)
@click.argument("more", nargs=-1, metavar="[NAME=VALUE]...")
@engine_option
@click.option("--what-if", "changes", multiple=True, metavar="NAME=VALUE", help="Plan with other settings of the YAML.")
@click.option("--compare", is_flag=True, help="Predict and rank every TP x PP x replicas on the GPUs.")
@click.option(
    "--objective",
    type=click.Choice(["slo", "latency", "throughput", "cost"]),
    default="slo",
    show_default=True,
    help="What --compare ranks by: headroom under the SLO, median latency, throughput, or fewest GPUs.",
)
@click.option("--gpus", type=click.IntRange(min=1), help="Plan for this many GPUs.")
@click.option("--hardware", metavar="NAME", help="Plan for this GPU, with its own memory.")
@click.option(
    "--estimator",
    type=click.Choice(["table", "aiconfigurator"]),
    default="table",
    show_default=True,
    help=f"Where step times are from: the planner's table of GPUs, or NVIDIA's measurements ({NAME}[aiconfigurator]).",
)
@click.option("--calibration", type=PATH, metavar="FILE", help="Use the step times of toolkit calibrate.")
@click.option("--claims", is_flag=True, help="Hold the requirements' own expectations against the arithmetic.")
@click.option("--html", type=PATH, metavar="FILE", help="Write the plan as a page with plots.")
@json_option
def plan(config: Path, more: tuple[str, ...], changes: tuple[str, ...], html: Path | None, **options: Any) -> None:
    """Show what the deployment needs and predict what it will do: memory, step times, percentiles, SLO.

    \b
    toolkit plan CONFIG --compare --html plan.html
    toolkit plan CONFIG --what-if max_batch_size=128 dtype=fp8 rate=12
    """
    from toolkit.plan.calibration import load
    from toolkit.plan.plan import Plan
    from toolkit.plan.what_if import load_changed

    if more and not changes:
        raise click.UsageError(f"Got {more[0]!r} after CONFIG. Settings follow --what-if.")
    if options["calibration"] and options["estimator"] != "table":
        raise click.UsageError("--calibration and --estimator are two sources of step times. Give one.")
    estimator = load(options["calibration"]) if options["calibration"] else options["estimator"]
    settings = [*changes, *more]
    settings += [f"hardware={options['hardware']}"] if options["hardware"] else []
    deployment = load_changed(config, options["engine"], settings, options["gpus"], any_layout=options["compare"])
    with progress("simulating layouts", "layouts") as report:
        compared, claims, objective = options["compare"], options["claims"], options["objective"]
        made = Plan(deployment, compared, claims, objective, report, estimator)
        if options["as_json"]:
            print_json(made.as_data())
        else:
            _print(made)
        if html:
            made.write_page(html)
            note(f"page: {html}")
    next_command(deployment, "build")


def _print(made: Plan) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=100)
    for number, part in enumerate(made.as_text()):
        if number:
            console.print()
        console.print(part)
