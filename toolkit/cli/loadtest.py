from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import (
    COULD_NOT_RUN,
    VerdictCommand,
    deployment_options,
    direct_option,
    door_target,
    job_summary,
    json_option,
    note,
    one_protocol,
    openai_option,
    print_json,
    tell,
)

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.load.runner import Options


PORT = 5557
"""Locust's."""


def _rates(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    from toolkit.config.workload import LEAST_RATE, MOST_RATE
    from toolkit.errors import shown

    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(LEAST_RATE <= rate <= MOST_RATE for rate in rates):
        accepted = f"each from {LEAST_RATE:g} to {MOST_RATE:,.0f} requests/s"
        raise click.UsageError(f"--sweep: expected rates as 1,2,4,8, {accepted}, got {shown(text)}")
    return rates


def _place(_context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([A-Za-z0-9._-]+)(?::(\d{1,5}))?", text)
    if found is None or not 0 < (port := int(found[2] or PORT)) < 1 << 16:
        from toolkit.errors import shown

        raise click.UsageError(f"--{parameter.name}: expected HOST or HOST:PORT, got {shown(text)}")
    return found[1], port


@click.command(cls=VerdictCommand)
@deployment_options
@click.option("--http", is_flag=True, help="Use HTTP, whatever the YAML says.")
@click.option("--grpc", is_flag=True, help="Use gRPC, whatever the YAML says.")
@click.option("--users", type=click.IntRange(min=1), help="Streams at a time, instead of the YAML's.")
@click.option(
    "--requests", type=click.IntRange(min=1), help="Number of requests, instead of the workload's or the YAML's."
)
@click.option(
    "--workload",
    metavar="NAME",
    help="A file, YAML or a trace; a name in loadtest/workloads; or yaml for the deployment's own.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests/s, instead of the workload's.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of the requests: another seed, other requests of the same kind."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Processes that send. One process reads 10,000 tokens/s over HTTP, 3,000 over gRPC.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Send nothing, and collect from N processes on other machines, which --join.",
)
@click.option("--listen", metavar="HOST[:PORT]", callback=_place, help="Where --workers are awaited.")
@click.option(
    "--join", metavar="HOST[:PORT]", callback=_place, help="Send a share of the load test that has its --workers there."
)
@click.option("--stream/--no-stream", default=True, help="Ask for answers token by token, or whole.")
@click.option("--target", metavar="URL", help="Use this server instead: http://, grpc://, openai+http:// ...")
@openai_option
@direct_option
@click.option("--model", metavar="NAME", help="The model: ensemble, tensorrt_llm_bls, or its name in OpenAI's API.")
@click.option(
    "--self-check/--no-self-check",
    default=True,
    help="First measure the generator's own error, for some seconds, on a server whose times are known.",
)
@click.option("--web-ui", is_flag=True, help="Start and stop tests on Locust's web page.")
@click.option(
    "--find-capacity", is_flag=True, help="Search the highest rate that meets the latencies, for ten minutes at most."
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Run the test N times and judge all runs together.",
)
@click.option("--sweep", metavar="RATES", callback=_rates, help="Run a test at each of these rates: 1,2,4,8.")
@json_option
def loadtest(
    deployment: Deployment,
    http: bool,
    grpc: bool,
    openai: bool,
    direct: bool,
    sweep: list[float] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Load the served model with Locust and judge the measurement by the SLO.

    Without --workload it runs the YAML's `loadtest`: users that send one question after another. Exit codes: 0 PASS,
    1 FAIL, 2 UNDECIDED, 3 could not run.
    """
    options["protocol"] = one_protocol(http, grpc)
    protocol = options["protocol"] or deployment.loadtest.protocol
    options["target"], served = door_target(deployment, protocol, options["target"], openai=openai, direct=direct)
    options["model"] = options["model"] or served
    find, times = options.pop("find_capacity"), options.pop("repeat")
    from toolkit.load.repeats import run_repeatedly
    from toolkit.load.runner import Options, attempt, join
    from toolkit.reports.loadtest import report, terminal

    _check_machines(options, find or sweep or times > 1)
    if find and sweep:
        raise click.UsageError("--find-capacity cannot be combined with --sweep.")
    if options["web_ui"] and (find or sweep):
        raise click.UsageError("--web-ui cannot be combined with --find-capacity or --sweep.")
    if times > 1 and (find or sweep or options["web_ui"]):
        raise click.UsageError("--repeat cannot be combined with --find-capacity, --sweep or --web-ui.")
    options["self_check"] &= not (options["web_ui"] or options["workers"])
    if options["join"]:
        sys.exit(join(deployment, Options(**options)))
    if find or sweep:
        sys.exit(_at_rates(deployment, Options(**options), sweep, as_json))
    test = Options(**options)
    attempted = run_repeatedly(deployment, test, times) if times > 1 else attempt(deployment, test)
    verdict = attempted.verdict
    measured = bool(verdict.measured.samples)
    if as_json and measured:
        click.echo((deployment.report_dir / report.JSON_NAME).read_text(encoding="utf-8"), nl=False)
    elif as_json:
        print_json({"verdict": str(verdict.outcome), "reason": verdict.reason})
    else:
        from toolkit.reports.terminal import Terminal

        predicted = attempted.run.predicted if attempted.run else None
        Terminal().print(terminal.summary(verdict, predicted), soft_wrap=True)
        if measured:
            click.echo(f"report: {report.report_page(deployment)}")
    job_summary(report.job_summary(deployment, verdict))
    sys.exit(verdict.exit_code)


def _check_machines(options: dict[str, Any], several: object) -> None:
    """Raise click.UsageError for options of a test on several machines that do not go together."""
    if (options["workers"] is None) != (options["listen"] is None):
        raise click.UsageError("--workers and --listen need each other.")
    one = "--workers" if options["workers"] else "--join" if options["join"] else ""
    if options["workers"] and options["join"]:
        raise click.UsageError("--workers collects, and --join sends. Give only one.")
    if one and (several or options["web_ui"]):
        raise click.UsageError(f"{one} cannot be combined with --find-capacity, --sweep, --repeat or --web-ui.")
    if options["workers"] and options["processes"]:
        raise click.UsageError("--processes is for those that --join: --workers counts all of them.")


def _at_rates(deployment: Deployment, options: Options, rates: list[float] | None, as_json: bool) -> int:
    """Search the capacity, or sweep, and print the result. Returns the exit code."""
    from toolkit.load.capacity import measure_capacity
    from toolkit.load.capacity import sweep as sweep_rates
    from toolkit.reports.rates import report as at_rates

    if rates is None:
        result = measure_capacity(deployment, options, note)
        met = result.rate is not None
    else:
        result = sweep_rates(deployment, options, rates, note)
        met = all(trial.met for trial in result.trials)
    if as_json:
        click.echo((deployment.rates_dir / at_rates.JSON_NAME).read_text(encoding="utf-8"), nl=False)
    else:
        tell(result.line)
        click.echo(f"report: {deployment.rates_dir / at_rates.HTML_NAME}")
    job_summary(at_rates.as_markdown(deployment, result))
    return COULD_NOT_RUN if result.cut_short else 0 if met else 1
