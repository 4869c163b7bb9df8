"""What the flagship is by each release, against checked-in copies, so that a change is seen in review.

A folder a release. 1.2 has everything: the contract, listed; the checkpoint's config.json; the repository's
configs; the build with its image, as a script; the command that serves. Another release has, as a diff, what differs
from 1.2 and nothing else.

After a change that is meant:  python tests/releases/test_golden.py
"""

import difflib
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from toolkit.checkpoint.config_json import config_text
from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.engine import dry_run as build_script
from toolkit.errors import ToolkitError
from toolkit.releases import llm_api
from toolkit.releases.models import OUR_PARAMETERS
from toolkit.releases.parameters import RENAMES
from toolkit.releases.release import LATEST, RELEASES, Release
from toolkit.releases.setting import Setting
from toolkit.repository import openai
from toolkit.repository.configs import model_configs, to_text
from toolkit.repository.llmapi import llmapi_configs, model_yaml
from toolkit.repository.parameters import SpecialTokens
from toolkit.serve import dry_run

GOLDEN = Path(__file__).parent / "golden"
FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
LLAMA3_INSTRUCT = SpecialTokens(eos=(128001, 128009), pad=128001)


def texts(release: Release) -> dict[str, str]:
    """By the name of the copy. They do not depend on who makes them, nor where."""
    version = {"version": release.images[0].version}
    deployment = with_settings(load_deployment(FLAGSHIP), engine_options=version)
    in_docker = with_settings(deployment, runtime={"kind": "docker"})
    checkpoint = config_text(deployment.shape, deployment.mapping, deployment.model.dtype)
    configs = model_configs(deployment, LLAMA3_INSTRUCT, deployment.engine_dir)
    with (
        patch("toolkit.serve.share.read_topology", side_effect=ToolkitError("nobody looked")),
        patch("toolkit.serve.share.visible_here", lambda: None),
        patch.object(os, "getuid", lambda: 1000),
        patch.object(os, "getgid", lambda: 1000),
    ):
        commands = {
            "build.sh": build_script(in_docker),
            "serve.sh": dry_run(in_docker) + "\n",
            **pytorch(in_docker),
        }
    made = {f"{name}.pbtxt": to_text(config) for name, config in configs.items()} | commands
    made["checkpoint.json"] = checkpoint
    own = {str(deployment.output): "/OUTPUT", str(deployment.file): "FILE"}
    for place, name in own.items():
        made = {copy: text.replace(place, name) for copy, text in made.items()}
    return {"contract.txt": listing(release), **made}


def pytorch(tensorrt: Deployment) -> dict[str, str]:
    """The twin of a deployment without engines: the release 0.20 has none."""
    if tensorrt.release.name not in llm_api.RELEASES:
        return {}
    twin = tensorrt.model_copy(update={"engine": "pytorch"})
    configs = {f"pytorch-{name}.pbtxt": to_text(config) for name, config in llmapi_configs(twin).items()}
    return {
        **configs,
        "pytorch-model.yaml": model_yaml(twin, LLAMA3_INSTRUCT, longest_token_bytes=128),
        "pytorch-trtllm-serve.yaml": openai.options_text(twin),
        "pytorch-trtllm-serve.sh": openai.script_text(twin, twin.repository_dir / openai.OPTIONS),
    }


def copies(release: Release) -> dict[str, str]:
    """The copies of a release by their names: of the latest whole, of another what differs."""
    made = texts(release)
    if release is LATEST:
        return made
    found = {}
    for name, latest in texts(LATEST).items():
        if name not in made:
            continue
        places = (f"{LATEST.name}/{name}", f"{release.name}/{name}")
        lines = difflib.unified_diff(latest.splitlines(True), made[name].splitlines(True), *places)
        if diff := "".join(lines):
            found[f"{name}.diff"] = diff
    return found


def listing(release: Release) -> str:
    lines = [f"release {release.name}: {', '.join(release.versions)}", "", "images"]
    for image in release.images:
        lines.append(
            f"  {image.tag}: TensorRT-LLM {image.version}, TensorRT {image.tensorrt}, CUDA {image.cuda}, "
            f"driver {image.driver}, Python {image.python}"
        )
    lines += ["", "flags of trtllm-build", *map(line, release.build_flags.values())]
    lines += ["", "parameters of the backend", *map(line, release.backend_parameters.values())]
    for model, parameters in release.model_parameters.items():
        lines += ["", f"parameters of NVIDIA's {model}", *map(line, parameters.values())]
    for model, parameters in OUR_PARAMETERS.items():
        lines += ["", f"parameters of our {model}", *map(line, parameters.values())]
    keys = sorted(f"  {block}.{name}" for block, known in release.checkpoint_keys.items() for name in known)
    lines += ["", "keys of blocks in a checkpoint's config.json", *keys]
    lines += ["", "not flags", *(f"  {name}: {why}" for name, why in release.removed_flags.items())]
    lines += ["", "renamed", *(f"  {old}: {new} since {since}" for old, (new, since) in RENAMES.items())]
    return "\n".join(lines) + "\n"


def line(setting: Setting) -> str:
    """As `  tokens_per_block: int 1..inf, default 32 (of the KV cache)`."""
    text = f"  {setting.name}: {setting.kind}"
    if setting.kind in ("int", "float"):
        text += f" {setting.low}..{setting.high}"
    if setting.choices:
        text += f" {'|'.join(setting.choices)}"
    if getattr(setting, "present", False):
        text += ", required" if setting.required else ", must be there"
    if setting.default is not None:
        text += f", default {setting.default}"
    return f"{text} ({setting.note})" if setting.note else text


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_copies(release: Release) -> None:
    folder = GOLDEN / release.name
    kept = {path.name: path.read_text() for path in folder.iterdir()}
    made = copies(release)
    assert sorted(kept) == sorted(made)
    for name, text in made.items():
        assert text == kept[name], f"{folder / name}: see {__file__}"


def write() -> None:
    for release in RELEASES.values():
        folder = GOLDEN / release.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, text in copies(release).items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    write()
