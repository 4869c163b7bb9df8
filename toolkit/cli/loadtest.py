from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import VerdictCommand, deployment_options, json_option, note, print_json

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
@click.option("--processes", type=click.IntRange(min=1), help="Processes that send; one sends about 5,000 tokens/s.")
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
@click.option("--sweep", metavar="RATES", help="A test at each of these rates: 1,2,4,8.")
@json_option
def loadtest(deployment: Deployment, as_json: bool, **options: Any) -> None:
    """Load the served model with Locust and judge what was measured by the SLO.

    Without --workload: the YAML's `loadtest`, users that ask one question after another. Exit codes: 0 PASS, 1 FAIL,
    2 UNDECIDED, 3 could not run.
    """
    from toolkit.load.launch import Options, run

    find, rates = options.pop("find_capacity"), options.pop("sweep")
    from toolkit.slo import report, terminal

    options["self_check"] &= not options["web_ui"]
    if find or rates:
        sys.exit(_at_rates(deployment, Options(**options), rates, as_json))
    verdict = run(deployment, Options(**options))
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
    sys.exit(verdict.exit_code)


def _at_rates(deployment: Deployment, options: Options, rates: str | None, as_json: bool) -> int:
    """The search for the capacity, or the sweep, printed; the exit code."""
    from toolkit.load.capacity import measure_capacity, sweep

    if rates is not None:
        try:
            wanted = [float(rate) for rate in rates.split(",")]
        except ValueError:
            raise click.UsageError(f"--sweep: expected rates as 1,2,4,8, got {rates!r}") from None
        trials = sweep(deployment, options, wanted, note)
        if as_json:
            print_json([asdict(trial) for trial in trials])
        return 0 if all(trial.met for trial in trials) else 1
    found = measure_capacity(deployment, options, note)
    if as_json:
        print_json(asdict(found))
    elif found.rate is None:
        click.echo(f"no rate meets the SLO, down to {found.missed:.3g} requests/s")
    else:
        within = f"; {found.missed:.3g} misses it" if found.missed else ""
        click.echo(f"capacity {found.rate:.3g} requests/s{within}{'; ' + found.why if found.why else ''}")
    return 0 if found.rate is not None else 1
