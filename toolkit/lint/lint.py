"""All rules, over one repository."""

from __future__ import annotations

from pathlib import Path

from toolkit.lint import engine_rules, ensemble_rules, executor_rules, file_rules, model_rules, text_rules
from toolkit.lint.finding import Finding
from toolkit.lint.repository import Repository, read_repository
from toolkit.releases import LATEST, Release, release_of

MODULES = (file_rules, ensemble_rules, executor_rules, model_rules, engine_rules, text_rules)


def lint(folder: Path, engine: Path | None = None, release: str | None = None) -> list[Finding]:
    """What is wrong, errors first, then by file. `engine` is looked at instead of gpt_model_path.

    `release` is that of TensorRT-LLM; by default the engine's, or the latest. Raises ToolkitError when the folder is no
    model repository, or the release is not known.
    """
    repository = read_repository(folder, engine)
    known = _release(repository, release)
    found = {finding: None for module in MODULES for finding in module.check(repository, known)}
    return sorted(found, key=lambda finding: (finding.level != "error", str(finding.path), finding.line or 0))


def _release(repository: Repository, given: str | None) -> Release:
    if given is not None:
        return release_of(given)
    version = repository.engine.version if repository.engine else None
    return release_of(version, where=repository.engine.folder) if version and repository.engine else LATEST
