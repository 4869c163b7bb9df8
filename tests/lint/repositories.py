"""Repositories with their engines, and ways to change them."""

import functools
import json
import re
import shutil
import tempfile
from pathlib import Path

import yaml

from toolkit.config.load import load_deployment
from toolkit.lint import lint
from toolkit.repository.configs import model_configs, to_text
from toolkit.repository.parameters import SpecialTokens

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
RANKS = 8
START, ANSWERS, DEFAULT = "start", "answers", "default"
"""Effects: of an error that nothing starts with, of one that it starts with, and of a warning."""
ENGINE = "/the/folder/of/the/engine"
LLM, ENSEMBLE, BLS, BEFORE, AFTER = "tensorrt_llm", "ensemble", "tensorrt_llm_bls", "preprocessing", "postprocessing"


def write_engine(folder: Path, **build) -> Path:
    """As `trtllm-build` leaves one: PP4 x TP2, 16 sequences a micro-batch."""
    folder.mkdir(parents=True)
    limits = {"max_batch_size": 16, "max_num_tokens": 8192, "max_seq_len": 8192, "max_beam_width": 1}
    plugins = {"use_paged_context_fmha": True, "remove_input_padding": True}
    config = {
        "version": build.pop("version", "1.2.1"),
        "pretrained_config": {"mapping": {"world_size": RANKS, "tp_size": 2, "pp_size": 4}},
        "build_config": {**limits, "kv_cache_type": "PAGED", "plugin_config": plugins, **build},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(RANKS):
        (folder / f"rank{rank}.engine").touch()
    return folder


def write_repository(tmp_path: Path, tiny_llama: Path, yaml_file: Path, version: str = "1.2.1") -> Path:
    """A deployment's, by the release that has this version, with its engine beside it."""
    engine = write_engine(tmp_path / "engine", version=version)
    folder = tmp_path / "repository"
    for name, text in _configs(yaml_file, version).items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(text.replace(ENGINE, str(engine)))
        if 'backend: "python"' in text:
            (folder / name / "1" / "model.py").write_text("")
    tokenizer = folder / "preprocessing" / "1" / "tokenizer"
    tokenizer.mkdir()
    shutil.copy(tiny_llama / "tokenizer.json", tokenizer)
    return folder


@functools.cache
def _configs(yaml_file: Path, version: str) -> dict[str, str]:
    """The text of each model's config.pbtxt, with ENGINE for the engine's folder. A hundred tests change a copy."""
    content = yaml.safe_load(yaml_file.read_text())
    if content["engine"] != "rehearsal":
        content["engine"] = {"kind": "tensorrt", "version": version}
    model = content["model"]
    model["path"] = str(yaml_file.parent / model["path"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.yaml")
        file.write_text(yaml.safe_dump({**content, "output": f"{folder}/out"}))
        deployment = load_deployment(file)
    configs = model_configs(deployment, SpecialTokens((2,), 0), Path(ENGINE))
    return {name: to_text(config) for name, config in configs.items()}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text), old
    path.write_text(re.sub(old, new, text, count=1))


def parameter(name: str, value: str, model: str = "tensorrt_llm"):
    """Give a parameter of the executor, or of another model, another value, or one where it had none."""
    new = f'key: "{name}"\n  value {{\n    string_value: "{value}"\n  }}'

    def change(repository: Path) -> None:
        path = repository / model / "config.pbtxt"
        text = path.read_text()
        changed, count = re.subn(rf'key: "{name}"\s+value {{(?:\s+string_value: "[^"]*")?\s+}}', new, text)
        path.write_text(changed if count else f"{text}parameters {{\n  {new}\n}}\n")

    return change


def config(model: str, old: str, new: str):
    return lambda repository: edit(repository / model / "config.pbtxt", old, new)


def without(path: str):
    def change(repository: Path) -> None:
        target = repository / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def check_found(repository: Path, kind: str, effect: str, says: str) -> None:
    """Findings of a kind, all with one effect, one of which says something."""
    found = [finding for finding in lint(repository) if finding.kind == kind]
    assert any(says in f"{finding.what} {finding.fix}" for finding in found), lint(repository)
    assert {finding.effect for finding in found} == {effect}, found
    for finding in found:
        assert finding.level == ("warning" if effect == DEFAULT else "error")
        assert finding.fix and "\n" not in finding.what and finding.path.is_relative_to(repository.parent)
