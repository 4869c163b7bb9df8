from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, note, print_json

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
@click.argument("question")
@click.option("--http", "protocol", flag_value="http", default=True, help="Ask over HTTP (the default).")
@click.option("--grpc", "protocol", flag_value="grpc", help="Ask over gRPC.")
@click.option("--raw", is_flag=True, help="Send the text as it is, without the model's chat template.")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Tokens to generate at most.")
@json_option
def ask(deployment: Deployment, question: str, protocol: str, raw: bool, max_tokens: int, as_json: bool) -> None:
    """Ask the served model a QUESTION and stream its answer; of several replicas, the first that is ready."""
    from toolkit.client import GenerateRequest, connect
    from toolkit.client.chat import chat_prompt
    from toolkit.load.target import first_ready

    prompt = question if raw else chat_prompt(deployment.model.path, question)
    request = GenerateRequest(prompt, max_tokens)
    url = first_ready(deployment, protocol).url(protocol)
    pieces, arrivals, sent = [], [], time.perf_counter()
    with connect(url) as client:
        for event in client.generate_stream(request, deadline_s=deployment.loadtest.timeout_s):
            pieces.append(event.text)
            arrivals.append(event.received)
            if not as_json:
                click.echo(event.text, nl=False)
    ttft_ms, e2e_ms = (arrivals[0] - sent) * 1e3, (arrivals[-1] - sent) * 1e3
    if as_json:
        return print_json({"text": "".join(pieces), "tokens": len(pieces), "ttft_ms": ttft_ms, "e2e_ms": e2e_ms})
    click.echo()
    note(f"{len(pieces)} tokens over {protocol}, first after {ttft_ms:.0f} ms, all in {e2e_ms / 1e3:.1f} s")
