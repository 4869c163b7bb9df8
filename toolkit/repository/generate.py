"""Writes the Triton model repository of a deployment.

    repository/
        ensemble/           config.pbtxt, 1/ (empty)
        preprocessing/      config.pbtxt, 1/model.py and the files it imports, 1/tokenizer/
        tensorrt_llm/       config.pbtxt, 1/ (empty; engine: rehearsal has its model.py there)
        postprocessing/     config.pbtxt, 1/model.py and the files it imports
        tensorrt_llm_bls/   the same
        lock.json

engine: pytorch has three models (toolkit/repository/llmapi.py), and files that start trtllm-serve instead of Triton.
The tokenizer is inside `preprocessing`, because Triton takes every folder of a repository for a model. All paths in the
configs are relative, except the path of the engines, so a repository can be copied elsewhere.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.source import open_source
from toolkit.checkpoint.tied import check_tied
from toolkit.config.deployment import Deployment
from toolkit.config.engine_kind import EngineKind
from toolkit.errors import ToolkitError
from toolkit.files import artifacts, distribution
from toolkit.model.meta_params import PARAMS
from toolkit.model.tokenizer import open_tokenizer, special_tokens
from toolkit.repository import openai
from toolkit.repository.llm_args import check_llm_args
from toolkit.repository.token_table import longest_token_bytes, write_token_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCES = distribution.folder("triton_repo")
VERSION = "1"

# tritonclient, with gRPC and numpy, is imported where a repository is made: serve, status and stop import this, too.


def generate(deployment: Deployment) -> bool:
    """Write `deployment.repository_dir`. Returns True if it was written now, False if it was up to date.

    Raises ToolkitError when the engines are missing or belong to another deployment, or when the model or its
    tokenizer cannot be used.
    """
    contents = _of_engines(deployment) if deployment.kind.engine_files else _of_llm_api(deployment)
    copies = {name: _sources(name, deployment.kind) for name in contents.models}

    def write(directory: Path) -> None:
        for name in contents.models:
            version = directory / name / VERSION
            version.mkdir(parents=True)
            for source in copies[name]:
                shutil.copyfile(source, version / source.name)
        for path, text in contents.texts.items():
            (directory / path).write_text(text, encoding="utf-8")
        if contents.tokenizer:
            kept = directory / "preprocessing" / VERSION / "tokenizer"
            kept.mkdir()
            source, tokenizer = contents.tokenizer
            shutil.copyfile(source, kept / source.name)
            write_token_table(source, kept, tokenizer)

    texts = {path: artifacts.digest_of(text) for path, text in contents.texts.items()}
    models = {name: artifacts.fingerprint(files) for name, files in copies.items()}
    return artifacts.write_stage(
        deployment.repository_dir,
        "repository",
        inputs={**contents.inputs, "models": artifacts.digest_of(models)},
        settings={**settings(deployment), "configs": texts},
        versions={"toolkit": distribution.VERSION},
        write=write,
    )


@dataclass(frozen=True)
class _Contents:
    """The contents of a repository, without the Python files of its models."""

    models: tuple[str, ...]
    texts: dict[str, str]
    """Texts by their path in the repository."""
    inputs: dict[str, str]
    """Digests of the inputs."""
    tokenizer: tuple[Path, Tokenizer] | None = None


def _of_engines(deployment: Deployment) -> _Contents:
    from toolkit.repository.configs import model_configs

    engines = artifacts.require(
        deployment.engine_dir, "engine", deployment.engine_settings, deployment.command("build")
    )
    directory, vocab_size = deployment.model.path, deployment.shape.vocab_size
    path, tokenizer = open_tokenizer(directory, vocab_size)
    configs = model_configs(deployment, special_tokens(directory, vocab_size), deployment.engine_dir)
    inputs = {"engine": engines.digest, "tokenizer": artifacts.fingerprint([path])}
    return _Contents(tuple(configs), _config_texts(configs), inputs, (path, tokenizer))


def _of_llm_api(deployment: Deployment) -> _Contents:
    from toolkit.repository.llmapi import MODEL, llmapi_configs, model_yaml

    check_llm_args(deployment)
    inputs = {"model": model_digest(deployment)}
    check_tied(open_source(deployment.model.path), deployment.shape)
    longest = longest_token_bytes(*open_tokenizer(deployment.model.path, deployment.shape.vocab_size))
    configs, options = llmapi_configs(deployment), deployment.repository_dir / openai.OPTIONS
    texts = {
        **_config_texts(configs),
        f"{MODEL}/{VERSION}/model.yaml": model_yaml(
            deployment, special_tokens(deployment.model.path, deployment.shape.vocab_size), longest
        ),
        openai.OPTIONS: openai.options_text(deployment),
        openai.SCRIPT: openai.script_text(deployment, options),
    }
    return _Contents(tuple(configs), texts, inputs)


def _config_texts(configs: dict[str, Any]) -> dict[str, str]:
    from toolkit.repository.configs import to_text

    return {f"{name}/config.pbtxt": to_text(config) for name, config in configs.items()}


def model_digest(deployment: Deployment) -> str:
    """The digest of the model that the LLM API will load: its settings, and the names and sizes of its weights.

    Raises ToolkitError where the model is missing, incomplete, or not in Hugging Face's form.
    """
    directory = deployment.model.path
    source = open_source(directory)
    if source.files[0].name == PARAMS:
        what = "is a model in Meta's form, which the LLM API does not load"
        raise ToolkitError(what, where=directory, hint="Use the same model from Hugging Face, or engine: tensorrt.")
    settings = [path for path in sorted(directory.glob("*.json")) if path.is_file()]
    sizes = {name: size for name, (size, _) in source.seen().items()}
    return artifacts.digest_of([artifacts.fingerprint(settings), sizes])


OF_THE_NODES = ("parallel.nodes", "hardware.node_link_gbps", "hardware.node_links", "hardware.node_latency_us")
"""Where ranks run, and what the plan counts for it: a repository is the same on any nodes."""


def settings(deployment: Deployment) -> dict[str, Any]:
    """The parts of the YAML that a repository depends on. They are in its lock, and serving requires the same
    values."""
    sections = ("parallel", "limits", "kv_cache", "scheduler", "hardware")
    fields = {name: getattr(deployment, name).model_dump() for name in sections}
    flat = {f"{section}.{key}": value for section, values in fields.items() for key, value in values.items()}
    flat = {key: value for key, value in flat.items() if key not in OF_THE_NODES}
    extra = {} if deployment.kind.engine_files else deployment.engine_options.extra
    version = {} if deployment.kind.engine_files else {"engine.version": deployment.engine_options.version}
    return {
        "engine": deployment.engine,
        "serving.decoupled": deployment.serving.decoupled,
        **version,
        **{f"engine.extra.{key}": value for key, value in extra.items()},
        **flat,
    }


def _sources(model: str, kind: EngineKind) -> list[Path]:
    """The Python files of a model's version directory: its own, and those that the Python models share."""
    folders = [SOURCES / folder for folder in kind.models.get(model, ())]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    if folders and not files:
        raise ToolkitError(
            f"the source of {model} is missing", where=SOURCES, hint="Install the toolkit with: pip install -e ."
        )
    return files
