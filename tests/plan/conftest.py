import hashlib
from pathlib import Path

import pytest
import yaml

from toolkit.config.load import load_deployment
from toolkit.plan.layouts import Comparison, compare
from toolkit.plan.plan import Plan

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.fixture(scope="session")
def flagship_compared() -> Comparison:
    """The flagship as it is, with its nine rivals: each predicted, and what would make it meet its SLO (10 s)."""
    return compare(load_deployment(FLAGSHIP))


@pytest.fixture
def flagship(tmp_path_factory):
    """Writes a copy of the flagship's YAML with some "section.key" changed. Equal copies have the same path."""

    def write(**changes) -> Path:
        content = yaml.safe_load(FLAGSHIP.read_text())
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                content.setdefault(section, {})[key] = value
            else:
                content[section] = value
        text = yaml.safe_dump(content)
        folder = tmp_path_factory.getbasetemp() / "flagship" / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "changed.yaml").write_text(text)
        return folder / "changed.yaml"

    return write


@pytest.fixture(scope="session")
def plans() -> dict[str, Plan]:
    return {}


@pytest.fixture
def remembered(monkeypatch, plans):
    """A plan is computed once: what it says as text, as JSON, as a page and as an exit code is of one computation."""

    def plan(deployment, compare, claims, objective, progress, estimator) -> Plan:
        key = repr((deployment.model_dump_json(), deployment.file, compare, claims, objective, estimator))
        made = plans.setdefault(key, Plan(deployment, compare, claims, objective, None, estimator))
        object.__setattr__(made, "progress", progress)  # that of this run of the command
        return made

    monkeypatch.setattr("toolkit.plan.plan.Plan", plan)
