"""Writes the command and the options file of trtllm-serve, NVIDIA's server with OpenAI's API, for a deployment.

The server needs neither Triton nor this toolkit. Flags: NVIDIA/TensorRT-LLM tensorrt_llm/commands/serve.py@00209af1.
The flags that are used here are in all releases of toolkit.releases.llm_api.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.repository.llm_args import as_yaml, llm_args
from toolkit.runtime import Needs, script

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

OPTIONS = "trtllm-serve.yaml"
SCRIPT = "trtllm-serve.sh"
FLAGS = {
    "backend": "--backend",
    "tensor_parallel_size": "--tp_size",
    "pipeline_parallel_size": "--pp_size",
    "max_batch_size": "--max_batch_size",
    "max_num_tokens": "--max_num_tokens",
    "max_seq_len": "--max_seq_len",
}
"""Arguments of the LLM API that are flags. The options file has the others; it overrides flags."""
NOT_TOLD = ("model", "trust_remote_code", "max_beam_width", *FLAGS)
"""Arguments that are not in the options file: they are set otherwise, or have their default."""


def options_text(deployment: Deployment) -> str:
    """The content of the file for --extra_llm_api_options."""
    return as_yaml(argument for argument in llm_args(deployment) if argument.name not in NOT_TOLD)


def script_text(deployment: Deployment, options: Path) -> str:
    """A shell script that starts the server in the deployment's `runtime`, with the options in that file."""
    values = {argument.name: str(argument.value) for argument in llm_args(deployment)}
    serving = deployment.serving
    command = ["trtllm-serve", str(deployment.model.path), "--host", serving.host, "--port", str(serving.http_port)]
    for name, flag in FLAGS.items():
        command += [flag, values[name]]
    command += ["--extra_llm_api_options", str(options)]
    needs = Needs(
        reads=(deployment.model.path, options),
        gpus=tuple(range(deployment.mapping.world_size)),
        ports=(serving.http_port,),
        name=f"toolkit-{deployment.name}-openai",
    )
    return script(deployment, command, needs)
