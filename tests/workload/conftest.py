from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.workload.file import load_workload
from toolkit.workload.load_plan import LoadPlan, load_plan

BUILD_CONFIGS = Path(__file__).parents[2] / "build_configs"
FLAGSHIP = BUILD_CONFIGS / "llama3-70b-h100-pp4tp2-fp16.yaml"
SMALL = BUILD_CONFIGS / "tiny-llama-rehearsal.yaml"


@pytest.fixture
def deployment(tmp_path: Path) -> Callable[..., Deployment]:
    """The flagship with another workload: keys of it, and `sections` for other sections to replace."""

    def load(workload: object = None, /, sections: dict | None = None, **keys: object) -> Deployment:
        content = {**yaml.safe_load(FLAGSHIP.read_text()), **(sections or {})}
        content["workload"] = keys if workload is None else workload
        file = tmp_path / "x.yaml"
        file.write_text(yaml.safe_dump(content))
        return load_deployment(file)

    return load


@pytest.fixture
def workload_file(tmp_path: Path) -> Callable[..., Path]:
    """A workload file with these keys, or with this text."""

    def write(text: str | None = None, /, **keys: object) -> Path:
        file = tmp_path / "w.yaml"
        file.write_text(yaml.safe_dump(keys) if text is None else text)
        return file

    return write


@pytest.fixture
def plan(tiny_llama: Path, workload_file) -> Callable[..., LoadPlan]:
    """The load plan of a workload for the small model, with other limits where `max_seq_len` is given."""

    def make(max_seq_len: int = 8192, model: Path = tiny_llama, **keys: object) -> LoadPlan:
        file = workload_file(**keys)
        return load_plan(load_workload(file), small(model, max_seq_len), file)

    return make


def small(model: Path, max_seq_len: int = 8192) -> Deployment:
    """The rehearsal of the small model with another model's folder; planned for sequences as long as wanted."""
    deployment = load_deployment(SMALL, changes={"model.path": str(model)})
    return with_settings(deployment, limits={"max_seq_len": max_seq_len})
