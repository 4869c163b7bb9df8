"""`toolkit plan --fleet`: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import note, print_json
from toolkit.cli.progress import progress

if TYPE_CHECKING:
    from toolkit.plan.plan import Plan

OTHERS = {"compare": "--compare", "claims": "--claims", "check": "--check", "target": "--write"}


class Rate(click.FloatRange):
    """Requests/s that a plan can be made for."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        rate = super().convert(value, param, context)
        from toolkit.config.workload import LEAST_RATE, MOST_RATE

        if not LEAST_RATE <= rate <= MOST_RATE:
            accepted = f"from {LEAST_RATE:g} to {MOST_RATE:,.0f}"
            self.fail(f"{value} is not a rate. Give requests per second, {accepted}, such as 100.", param, context)
        return rate


def check_usage(options: dict[str, Any]) -> None:
    """Raise click.UsageError for options that do not go together."""
    for name in ("rate", "nodes"):
        if options[name] is not None and not options["fleet"]:
            raise click.UsageError(f"--{name} needs --fleet.")
    if not options["fleet"]:
        return
    if options["rate"] is not None and options["nodes"] is not None:
        raise click.UsageError("--rate and --nodes are two questions. Give only one.")
    for name, option in OTHERS.items():
        if options[name]:
            raise click.UsageError(f"--fleet cannot be combined with {option}.")


def show_fleet(made: Plan, rate: float | None, nodes: int | None, as_json: bool, html: Path | None) -> None:
    """Plan the fleet, print it and write the page."""
    from toolkit.plan.fleet.fleet import FleetPlan, check_fleet
    from toolkit.plan.show.fleet_data import fleet_data
    from toolkit.plan.show.fleet_report import WIDTH, fleet_text
    from toolkit.reports.terminal import Terminal

    check_fleet(made.deployment)
    if rate is None and nodes is None:
        rate = made.prediction.traffic.opened().rate
    with progress("simulating rates", "rates") as report:
        fleet = FleetPlan(made.prediction, rate, nodes, report)
        if html:
            made.check_page(html)
        data = fleet_data(fleet)
        if html:
            made.write_page(html, fleet)
    if as_json:
        print_json(data)
    else:
        Terminal(width=WIDTH).print(fleet_text(fleet))
    if html:
        note(f"page: {html}")
