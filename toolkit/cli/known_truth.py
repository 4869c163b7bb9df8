from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from toolkit.cli.common import json_option, note


@click.command("known-truth")
@click.option("--ttft-ms", type=float, default=200.0, show_default=True, help="Time to the first token.")
@click.option("--itl-ms", type=float, default=20.0, show_default=True, help="Time between tokens.")
@click.option("--tokens", type=int, help="End answers after so many tokens, not at the request's max_tokens.")
@click.option("--tokens-per-event", type=int, default=1, show_default=True, help="Tokens in one event.")
@click.option("--slots", type=int, help="Answers that run at a time. The others wait in order.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--http-port", type=int, default=0, show_default=True, help="0: any free port.")
@click.option("--grpc-port", type=int, default=0, show_default=True, help="0: any free port.")
@click.option(
    "--record", type=click.Path(path_type=Path), metavar="FILE", help="Append to FILE when each token was sent."
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="KIND[:SHARE][:AFTER_TOKENS]",
    help="Break this share of the answers: error-in-stream, status-500, status-429, refuse, wrong-content-type,"
    " truncated, hang, slow, token-after-end. die:N ends the process after N requests. Can be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which answers break.")
@json_option
def known_truth(as_json: bool, record: Path | None, **options: Any) -> None:
    """Serve answers with known token times, to test clients and load generators.

    Speaks Triton's HTTP and gRPC and OpenAI's HTTP, without a model or a GPU. Serves until Ctrl-C, then says how late
    its own tokens were.
    """
    from toolkit.known_truth.server import serve
    from toolkit.known_truth.settings import Settings

    settings = Settings(record=None if record is None else str(record), **options)

    def ready(urls: dict[str, str]) -> None:
        click.echo(json.dumps(urls) if as_json else f"ready: {urls['http']} {urls['grpc']}")
        if settings.slots is not None and settings.tokens is not None:
            note(f"capacity: {settings.capacity(settings.tokens):.4g} answers of {settings.tokens} tokens a second")

    done = serve(settings, ready)
    if as_json:
        return click.echo(json.dumps(done))
    late = (
        f"; tokens late by P50 {done['late_p50_ms']:.1f} ms, P99 {done['late_p99_ms']:.1f} ms" if done["tokens"] else ""
    )
    note(f"{done['requests']} requests, {done['tokens']} tokens, {done['cpu_cores']:.2f} CPU cores{late}")
