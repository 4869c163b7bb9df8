from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, next_command, note

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
def repo(deployment: Deployment) -> None:
    """Generate the Triton model repository; with engine pytorch also the script that starts trtllm-serve.

    Those of recovery.fallback, too.
    """
    from toolkit.config.fallbacks import fallbacks_of

    fallbacks = fallbacks_of(deployment)
    _generate(deployment)
    for fallback in fallbacks:
        note(f"fallback {fallback.name}:")
        _generate(fallback)
    next_command(deployment, "serve")


def _generate(deployment: Deployment) -> None:
    from toolkit.model.tokenizer import foreseen
    from toolkit.repository import generate

    written = generate(deployment)
    for line in foreseen(deployment.model.path, deployment.shape.vocab_size):
        note(f"warning: {line}")
    made_from = "engine" if deployment.kind.engine_files else "model"
    note("generated" if written else f"already generated from the same {made_from}; nothing to do")
    click.echo(deployment.repository_dir)
