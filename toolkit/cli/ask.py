from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import (
    deployment_options,
    direct_option,
    door_target,
    json_option,
    note,
    one_protocol,
    openai_option,
    print_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toolkit.client import Client, Event, GenerateRequest, Result
    from toolkit.config.deployment import Deployment

COUNT = "num_output_tokens"


@click.command()
@deployment_options
@click.argument("question")
@click.option("--http", is_flag=True, help="Use HTTP (the default).")
@click.option("--grpc", is_flag=True, help="Use gRPC.")
@click.option("--raw", is_flag=True, help="Send the text as it is, without the model's chat template.")
@click.option("--system", metavar="TEXT", help="Send this system message before the question.")
@click.option("--target", metavar="URL", help="Use this server instead: http://, grpc://, openai+http:// ...")
@openai_option
@direct_option
@click.option("--model", metavar="NAME", help="The model: ensemble, tensorrt_llm_bls, or its name in OpenAI's API.")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Most tokens to generate.")
@json_option
def ask(
    deployment: Deployment,
    question: str,
    http: bool,
    grpc: bool,
    raw: bool,
    system: str | None,
    target: str | None,
    openai: bool,
    direct: bool,
    model: str | None,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Ask the served model a QUESTION and stream its answer.

    Of several replicas it asks the first that is ready. With `serving.decoupled: false` the answer comes whole.
    """
    protocol = one_protocol(http, grpc)
    if raw and system is not None:
        raise click.UsageError("--system cannot be combined with --raw: it belongs to the chat template.")
    from toolkit.client import connect
    from toolkit.errors import harmless
    from toolkit.load.requests import MODEL
    from toolkit.load.target import can_stream, first_ready, protocol_of, with_hint
    from toolkit.workload import prompts

    target, served = door_target(deployment, protocol or "http", target, openai=openai, direct=direct)
    protocol = protocol_of(deployment, protocol, target) if target else protocol or "http"
    streamed = can_stream(deployment, target)
    pieces, arrivals, tokens = [], [], 0
    with connect(target or first_ready(deployment, protocol).url(protocol)) as client:
        request = prompts.question(
            client,
            deployment.model.path,
            question,
            system=system,
            raw=raw,
            max_tokens=max_tokens,
            model=model or served or MODEL,
            template=deployment.model.chat_template,
        )
        if served:  # OpenAI draws the tokens unless it is told otherwise; Triton's APIs take the likeliest
            request = replace(request, sampling={**request.sampling, "temperature": 0.0})
        sent = time.perf_counter()
        with with_hint(client, request.model):
            for event in _events(client, request, streamed, deployment.loadtest.timeout_s):
                pieces.append(event.text)
                arrivals.append(event.received)
                tokens += _tokens(event)
                if not as_json:
                    text = harmless(event.text) if sys.stdout.isatty() else event.text
                    click.echo(text, nl=False, color=True)  # color=True: click changes nothing
    e2e_ms = (arrivals[-1] - sent) * 1e3
    ttft_ms = (arrivals[0] - sent) * 1e3 if streamed else None
    if as_json:
        return print_json({"text": "".join(pieces), "tokens": tokens, "ttft_ms": ttft_ms, "e2e_ms": e2e_ms})
    click.echo()
    first = "" if ttft_ms is None else f"first token after {ttft_ms:.0f} ms, "
    note(f"{tokens} tokens over {protocol}, {first}all after {e2e_ms / 1e3:.1f} s")


def _tokens(event: Event | Result) -> int:
    """The server's count. Without one, 1, or 0 for the last chunk of OpenAI's API, which has a finish_reason only."""
    if COUNT in event.outputs:
        return int(event.outputs[COUNT])
    return 0 if not event.text and "finish_reason" in event.outputs else 1


def _events(client: Client, request: GenerateRequest, streamed: bool, deadline_s: float) -> Iterator[Event | Result]:
    """The answer token by token, or whole, with the number of its tokens."""
    if streamed:
        yield from client.generate_stream(request, deadline_s)
    else:
        yield client.generate(replace(request, sampling={**request.sampling, f"return_{COUNT}": True}), deadline_s)
