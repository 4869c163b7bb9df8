"""Writing the Triton model repository of a deployment.

    repository/
        ensemble/           config.pbtxt, 1/ (empty)
        preprocessing/      config.pbtxt, 1/model.py and the files it imports, 1/tokenizer/
        tensorrt_llm/       config.pbtxt, 1/ (empty; engine: rehearsal has its model.py there)
        postprocessing/     config.pbtxt, 1/model.py and the files it imports
        tensorrt_llm_bls/   the same
        lock.json

The tokenizer is inside `preprocessing`, as Triton takes every folder of a repository for a model. All paths
in the configs are relative to it but that of the engines, so a repository can be copied elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import toolkit
from toolkit import artifacts
from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.repository.configs import model_configs, to_text
from toolkit.repository.token_table import write_token_table
from toolkit.repository.tokenizer import special_tokens, tokenizer_file

SOURCES = Path(toolkit.__file__).resolve().parent.parent / "triton_repo"
PYTHON_MODELS = ("preprocessing", "postprocessing", "tensorrt_llm_bls")
VERSION = "1"


def generate(deployment: Deployment) -> bool:
    """Write `deployment.repository_dir`; True when it was written now, False when it was current.

    Raises ToolkitError when the engines are missing or of another deployment, or the tokenizer is unusable.
    """
    limits = deployment.limits
    built_for = {
        "engine": deployment.engine,
        "max_batch_size": deployment.max_batch_size,
        "max_num_tokens": limits.max_num_tokens,
        "max_seq_len": limits.max_seq_len,
    }
    engines = artifacts.require(deployment.engine_dir, "engine", built_for, f"toolkit build {deployment.file}")
    tokenizer = tokenizer_file(deployment)
    configs = model_configs(deployment, special_tokens(deployment), deployment.engine_dir)
    texts = {name: to_text(config) for name, config in configs.items()}
    sources = {name: _sources(name, deployment.engine) for name in configs}

    def write(directory: Path) -> None:
        for name, text in texts.items():
            version = directory / name / VERSION
            version.mkdir(parents=True)
            (directory / name / "config.pbtxt").write_text(text, encoding="utf-8")
            for source in sources[name]:
                shutil.copyfile(source, version / source.name)
        kept = directory / "preprocessing" / VERSION / "tokenizer"
        kept.mkdir()
        shutil.copyfile(tokenizer, kept / tokenizer.name)
        write_token_table(tokenizer, kept)

    return artifacts.produce(
        deployment.repository_dir,
        "repository",
        inputs={
            "engine": engines.digest,
            "tokenizer": artifacts.fingerprint([tokenizer]),
            "models": artifacts.digest_of({name: artifacts.fingerprint(files) for name, files in sources.items()}),
        },
        settings={**settings(deployment), "configs": {name: artifacts.digest_of(text) for name, text in texts.items()}},
        versions={"toolkit": importlib.metadata.version("toolkit")},
        write=write,
    )


def settings(deployment: Deployment) -> dict[str, Any]:
    """What of the YAML a repository depends on: its lock's settings, which serving requires to be the same."""
    sections = ("parallel", "limits", "kv_cache", "scheduler", "hardware")
    fields = {name: getattr(deployment, name).model_dump() for name in sections}
    flat = {f"{section}.{key}": value for section, values in fields.items() for key, value in values.items()}
    return {"engine": deployment.engine, **flat}


def _sources(model: str, engine: str) -> list[Path]:
    """The Python files of a model's version directory: its own, and what the Python models share."""
    folders: Iterable[Path] = ()
    if model in PYTHON_MODELS:
        folders = (SOURCES / model / VERSION, SOURCES / "shared")
    elif model == "tensorrt_llm" and engine == "rehearsal":
        folders = (SOURCES / model / VERSION,)
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    if folders and not files:
        raise ToolkitError(
            f"the source of {model} is missing", where=SOURCES, hint="Install the toolkit with: pip install -e ."
        )
    return files
