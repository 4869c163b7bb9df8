from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import (
    COULD_NOT_RUN,
    VerdictCommand,
    deployment_options,
    job_summary,
    json_option,
    note,
    print_json,
)

if TYPE_CHECKING:
    from toolkit.config import Deployment
    from toolkit.load.launch import Options


@click.command(cls=VerdictCommand)
@deployment_options
@click.option("--http", "protocol", flag_value="http", help="Load over HTTP, whatever the YAML says.")
@click.option("--grpc", "protocol", flag_value="grpc", help="Load over gRPC, whatever the YAML says.")
@click.option("--users", type=click.IntRange(min=1), help="Streams at a time instead of the YAML's.")
@click.option("--requests", type=click.IntRange(min=1), help="Requests instead of the workload's or the YAML's.")
@click.option("--workload", metavar="NAME", help="A file, a name in loadtest/workloads, or yaml: the deployment's own.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests/s instead of the workload's.")
@click.option("--seed", type=click.IntRange(min=0), help="Other requests of the same kind.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Processes that send. One reads 10,000 tokens/s over HTTP, 3,000 over gRPC.",
)
@click.option("--stream/--no-stream", default=True, help="Whether answers come token by token or whole.")
@click.option("--target", metavar="URL", help="Ask this server instead: http://, grpc://, openai+http:// ...")
@click.option("--model", metavar="NAME", help="The model to ask: ensemble, tensorrt_llm_bls, or OpenAI's name of it.")
@click.option(
    "--self-check/--no-self-check",
    default=True,
    help="Measure the generator's own error first, for some seconds, on a server whose times are known.",
)
@click.option("--web-ui", is_flag=True, help="Let Locust's own page start and stop the test.")
@click.option(
    "--find-capacity", is_flag=True, help="Search the highest rate that meets the SLO, in ten minutes at most."
)
@click.option(
    "--repeat", type=click.IntRange(min=1), default=1, metavar="N", help="The same test N times, judged together."
)
@click.option("--sweep", metavar="RATES", help="A test at each of these rates: 1,2,4,8.")
@json_option
def loadtest(deployment: Deployment, as_json: bool, **options: Any) -> None:
    """Load the served model with Locust and judge what was measured by the SLO.

    Without --workload: the YAML's `loadtest`, users that ask one question after another. Exit codes: 0 PASS, 1 FAIL,
    2 UNDECIDED, 3 could not run.
    """
    from toolkit.load.launch import Options, run
    from toolkit.load.repeats import run_repeatedly

    find, rates, times = options.pop("find_capacity"), options.pop("sweep"), options.pop("repeat")
    from toolkit.slo import report, terminal

    if times > 1 and (find or rates is not None or options["web_ui"]):
        raise click.UsageError("--repeat is of a single load test: leave out --find-capacity, --sweep and --web-ui.")
    options["self_check"] &= not options["web_ui"]
    if find or rates is not None:
        sys.exit(_at_rates(deployment, Options(**options), rates, as_json))
    told = Options(**options)
    verdict = run_repeatedly(deployment, told, times) if times > 1 else run(deployment, told)
    measured = bool(verdict.measured.samples)
    if as_json and measured:
        click.echo((deployment.report_dir / report.JSON_NAME).read_text(encoding="utf-8"), nl=False)
    elif as_json:
        print_json({"verdict": str(verdict.outcome), "reason": verdict.reason})
    else:
        from rich.console import Console

        predicted = report.read(deployment).predicted if measured else None
        Console(highlight=False).print(terminal.summary(verdict, predicted), soft_wrap=True)
        if measured:
            click.echo(f"report: {report.report_page(deployment)}")
    job_summary(report.job_summary(deployment, verdict))
    sys.exit(verdict.exit_code)


def _at_rates(deployment: Deployment, options: Options, rates: str | None, as_json: bool) -> int:
    """The search for the capacity, or the sweep, printed; the exit code."""
    from toolkit.load.capacity import measure_capacity, sweep
    from toolkit.slo import rates as at_rates

    if rates is None:
        found = measure_capacity(deployment, options, note)
        met = found.rate is not None
    else:
        found = sweep(deployment, options, _rates(rates), note)
        met = all(trial.met for trial in found.trials)
    if as_json:
        click.echo((deployment.rates_dir / at_rates.JSON_NAME).read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(found.line)
        click.echo(f"report: {deployment.rates_dir / at_rates.HTML_NAME}")
    job_summary(at_rates.as_markdown(deployment, found))
    return COULD_NOT_RUN if found.cut_short else 0 if met else 1


def _rates(text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise click.UsageError(f"--sweep: expected rates as 1,2,4,8, got {text!r}")
    return rates
