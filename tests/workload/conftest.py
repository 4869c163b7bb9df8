from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from toolkit.config import Deployment

FLAGSHIP = Path(__file__).parents[2] / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.fixture
def deployment(tmp_path: Path) -> Callable[..., Deployment]:
    """The flagship with another workload: keys of it, and `sections` for other sections to replace."""

    def load(workload: object = None, /, sections: dict | None = None, **keys: object) -> Deployment:
        content = {**yaml.safe_load(FLAGSHIP.read_text()), **(sections or {})}
        content["workload"] = keys if workload is None else workload
        file = tmp_path / "x.yaml"
        file.write_text(yaml.safe_dump(content))
        return Deployment.load(file)

    return load
