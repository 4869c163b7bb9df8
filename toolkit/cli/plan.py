from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import COULD_NOT_RUN, engine_option, json_option, next_command, note, print_json
from toolkit.cli.plan_fleet import Rate, check_usage, show_fleet
from toolkit.cli.progress import progress
from toolkit.errors import ToolkitError
from toolkit.files.distribution import NAME
from toolkit.processes import ended_by_signals

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.plan.plan import Plan

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("config", type=PATH)
@click.argument("more", nargs=-1, metavar="[NAME=VALUE]...")
@engine_option
@click.option("--what-if", "changes", multiple=True, metavar="NAME=VALUE", help="Plan with other settings of the YAML.")
@click.option(
    "--workload",
    metavar="trace:FILE",
    help="Plan for the requests of a trace, for example the kept traffic, instead of the YAML's workload.",
)
@click.option("--write", "target", type=PATH, metavar="FILE", help="Write the YAML with these settings, comments kept.")
@click.option("--force", is_flag=True, help="Let --write replace FILE.")
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
    help=f"Where step times come from: the planner's table of GPUs, or NVIDIA's measurements ({NAME}[aiconfigurator]).",
)
@click.option("--calibration", type=PATH, metavar="FILE", help="Use the step times of toolkit calibrate.")
@click.option("--claims", is_flag=True, help="Compare the expectations of the requirements with the arithmetic.")
@click.option("--fleet", is_flag=True, help="Plan many such nodes behind one router: how many, their cost, a day.")
@click.option(
    "--rate",
    type=Rate(min=0, min_open=True),
    help="With --fleet: requests/s in the busiest hour, instead of the workload's.",
)
@click.option("--nodes", type=click.IntRange(2, 100_000), help="With --fleet: the rate that so many nodes serve.")
@click.option("--html", type=PATH, metavar="FILE", help="Write the plan as a page with plots.")
@click.option(
    "--check", is_flag=True, help="For CI: exit 1 if the SLO is predicted to be missed, 3 if there is no plan."
)
@json_option
def plan(config: Path, more: tuple[str, ...], changes: tuple[str, ...], **options: Any) -> None:
    """Show what the deployment needs and predict what it will do: memory, step times, percentiles, SLO.

    \b
    toolkit plan CONFIG --workload trace:traffic.jsonl
    toolkit plan CONFIG --compare --html plan.html
    toolkit plan CONFIG --what-if max_batch_size=128 dtype=fp8 rate=12
    toolkit plan CONFIG --what-if max_num_tokens=256 --write FILE
    toolkit plan CONFIG --fleet --rate 100 --what-if price_per_gpu_hour=2.5
    """
    if more and not changes:
        raise click.UsageError(f"Got {more[0]!r} after CONFIG. Settings follow --what-if.")
    settings = [*changes, *more]
    if options["workload"]:
        settings.insert(0, f"workload={json.dumps(options['workload'])}")  # its name may hold what YAML reads otherwise
    settings += [f"hardware={options['hardware']}"] if options["hardware"] else []
    _check_usage(options, bool(settings or options["gpus"] or options["engine"]))
    try:
        with ended_by_signals():
            meets = _planned(config, settings, options)
    except ToolkitError as error:
        if options["check"]:
            error.exit_code = COULD_NOT_RUN
        raise
    if not meets:
        sys.exit(1)


def _check_usage(options: dict[str, Any], changed: bool) -> None:
    if options["calibration"] and options["estimator"] != "table":
        raise click.UsageError("--calibration and --estimator are two sources of step times. Give only one.")
    if options["target"] and not changed:
        raise click.UsageError("--write needs changed settings: --what-if NAME=VALUE.")
    if options["target"] and options["compare"]:
        raise click.UsageError("--write cannot be combined with --compare, which tries many settings.")
    if options["force"] and not options["target"]:
        raise click.UsageError("--force needs --write.")
    check_usage(options)


def _planned(config: Path, settings: list[str], options: dict[str, Any]) -> bool:
    """Plan, print and write. False if --check is given and the SLO is predicted to be missed."""
    from toolkit.config.edit_yaml import check_free, write_edited
    from toolkit.config.load import load_deployment
    from toolkit.plan.plan import Plan
    from toolkit.plan.what_if import changes_of
    from toolkit.steptimes.calibration import load

    engine, target, html = options["engine"], options["target"], options["html"]
    estimator = load(options["calibration"]) if options["calibration"] else options["estimator"]
    changes = changes_of(config, engine, settings, options["gpus"], any_layout=options["compare"])
    deployment = load_deployment(config, engine, changes)
    if options["fleet"]:
        show_fleet(Plan(deployment, estimator=estimator), options["rate"], options["nodes"], options["as_json"], html)
        return True
    if target:
        check_free(target, options["force"])
    with progress("simulating layouts", "layouts") as report:
        made = Plan(deployment, options["compare"], options["claims"], options["objective"], report, estimator)
        if html:
            made.check_page(html)
        if options["as_json"]:
            print_json(made.as_data())
        else:
            _print(made)
        if html:
            made.write_page(html)
            note(f"page: {html}")
    if target:
        write_edited(config, target, changes, engine, options["force"])
        note(f"written: {target}")
    _next(made.shown, config, target)
    return not options["check"] or made.meets


def _next(shown: Deployment, config: Path, written: Path | None) -> None:
    """Print the next command. If no file has these settings yet, it is the command that writes one."""
    from toolkit.plan.what_if import settings_of

    settings = settings_of(shown, config)
    if written or not settings:
        next_command(shown, "build", written)
        return
    file = f"{config.stem}-changed{config.suffix}"
    note(f"next: {shown.command('plan', '--what-if', *settings, '--write', file)}")


def _print(made: Plan) -> None:
    from toolkit.reports.terminal import Terminal

    console = Terminal(width=100)
    for number, part in enumerate(made.as_text(charts=console.is_terminal)):
        if number:
            console.print()
        console.print(part)
