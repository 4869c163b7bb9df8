from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import VerdictCommand, deployment_options, json_option, print_json

if TYPE_CHECKING:
    from toolkit.config import Deployment


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
@click.option("--target", metavar="URL", help="Ask this server instead: http://, grpc://, openai+http:// ...")
@click.option(
    "--self-check/--no-self-check",
    default=True,
    help="Measure the generator's own error first, for some seconds, on a server whose times are known.",
)
@click.option("--web-ui", is_flag=True, help="Let Locust's own page start and stop the test.")
@json_option
def loadtest(deployment: Deployment, as_json: bool, **options: Any) -> None:
    """Load the served model with Locust and judge what was measured by the SLO.

    Without --workload: the YAML's `loadtest`, users that ask one question after another. Exit codes: 0 PASS, 1 FAIL,
    2 UNDECIDED, 3 could not run.
    """
    from toolkit.load.launch import Options, run
    from toolkit.slo import report, terminal

    options["self_check"] &= not options["web_ui"]
    verdict = run(deployment, Options(**options))
    measured = bool(verdict.measured.samples)
    if as_json and measured:
        click.echo((deployment.report_dir / report.JSON_NAME).read_text(encoding="utf-8"), nl=False)
    elif as_json:
        print_json({"verdict": str(verdict.outcome), "reason": verdict.reason})
    else:
        from rich.console import Console

        Console(highlight=False).print(terminal.summary(verdict), soft_wrap=True)
        if measured:
            click.echo(f"report: {report.report_page(deployment)}")
    sys.exit(verdict.exit_code)
