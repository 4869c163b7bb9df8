"""Writes folders with `toolkit deploy`, and compares them with those in the repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from toolkit.cli.main import cli
from toolkit.deploy.wheel import FILE
from toolkit.errors import ToolkitError

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
TINY = ROOT / "tests/fixtures/tiny-llama"
CONFIGS = {
    "flagship": ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml",
    "pair": ROOT / "build_configs/smollm2-2x-rehearsal.yaml",
    "pair-etcd": ROOT / "build_configs/smollm2-2x-rehearsal.yaml",
    "two-nodes": ROOT / "build_configs/llama3.1-405b-h100-2x8-fp16.yaml",
    "two-nodes-image": ROOT / "build_configs/llama3.1-405b-h100-2x8-fp16.yaml",
}
SITE = {"image": "registry.example/team/toolkit:1", "claim": "models"}
"""What Kubernetes needs in the YAML."""
NODES = {
    "discovery": "etcd://10.0.0.9:2379",
    "interface": "eth1",
    "node_tls": {"ca": "/pki/ca.pem", "certificate": "/pki/node.pem", "key": "/pki/node-key.pem"},
}
"""The gateway of a node among several."""
OWN_ETCD = {**NODES, "discovery": "etcd://smollm2-2x-rehearsal-etcd:2379"}
"""With the etcd that the chart brings."""
SECTIONS = {
    "pair-etcd": {"gateway": OWN_ETCD},
    "two-nodes-image": {"deploy": {"image": "registry.example/team/toolkit:1"}},
}
NOT_GOLDEN = (FILE, "lock.json")
SAME_FOR_ALL = (("chart", "templates"), ("grafana", "dashboards"))


def deploy(config: Path, target: str, folder: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["deploy", str(config), "--to", target, "--output", str(folder), *more])


def deployed(config: Path, target: str, folder: Path, *more: str) -> Path:
    result = deploy(config, target, folder, *more)
    assert result.exit_code == 0, result.exception or result.output
    return folder


def refused(config: Path, target: str, folder: Path, *more: str) -> str:
    """The one line with which it is refused."""
    result = deploy(config, target, folder, *more)
    assert isinstance(result.exception, ToolkitError), result.output
    line = str(result.exception)
    assert "\n" not in line
    return line


def copied(name: str, folder: Path) -> Path:
    """A copy of one of CONFIGS and a model beside it: no path, and no order of paths, depends on the repository's."""
    file = folder / "configs" / CONFIGS[name].name
    file.parent.mkdir()
    shutil.copytree(TINY, file.parent / "tiny")
    file.write_text(CONFIGS[name].read_text().replace("../models/smollm2-135m-instruct", "tiny"))
    return file


def texts(folder: Path) -> dict[str, str]:
    """The files of a folder, without this machine's paths."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {
        str(name): (folder / name).read_text().replace(str(folder.parent), "/tmp")
        for name in names
        if name.name not in NOT_GOLDEN and name.parts[:2] not in SAME_FOR_ALL
    }


def check_golden(name: str, target: str, folder: Path, **sections) -> Path:
    """Deploy one of CONFIGS, and compare with the files in the repository; WRITE_GOLDEN=1 writes them."""
    config = copied(name, folder)
    if name in SECTIONS:
        change(config, **SECTIONS[name])
    if sections:
        config.write_text(f"{config.read_text()}\n{yaml.safe_dump(sections)}")
    made, golden = deployed(config, target, folder / target), GOLDEN / target / name
    if os.environ.get("WRITE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        for path, text in texts(made).items():
            (golden / path).parent.mkdir(parents=True, exist_ok=True)
            (golden / path).write_text(text)
    expected = {str(path.relative_to(golden)): path.read_text() for path in golden.rglob("*") if path.is_file()}
    assert texts(made) == expected
    return made


def change(config: Path, **sections) -> Path:
    """Change sections of the YAML."""
    content = yaml.safe_load(config.read_text())
    for name, fields in sections.items():
        kept = content.get(name, {})
        content[name] = {**kept, **fields} if isinstance(fields, dict) and isinstance(kept, dict) else fields
    config.write_text(yaml.safe_dump(content))
    return config
