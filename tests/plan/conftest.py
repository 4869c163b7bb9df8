from pathlib import Path

import pytest
import yaml

from toolkit.config.load import load_deployment
from toolkit.plan.layouts import Comparison, compare

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.fixture(scope="session")
def flagship_compared() -> Comparison:
    """The flagship as it is, with its nine rivals: each predicted, and what would make it meet its SLO (10 s)."""
    return compare(load_deployment(FLAGSHIP))


@pytest.fixture
def flagship(tmp_path):
    """Writes a copy of the flagship's YAML with some "section.key" changed, and returns its path."""

    def write(**changes) -> Path:
        content = yaml.safe_load(FLAGSHIP.read_text())
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                content.setdefault(section, {})[key] = value
            else:
                content[section] = value
        file = tmp_path / "changed.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write
