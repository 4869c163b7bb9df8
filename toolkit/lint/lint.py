"""Applies all rules to one repository."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.lint import (
    decoupled_rules,
    engine_rules,
    ensemble_rules,
    executor_rules,
    file_rules,
    instance_rules,
    llmapi_rules,
    model_rules,
    placeholder_rules,
    text_rules,
)
from toolkit.lint.finding import Finding
from toolkit.lint.repository import Repository, read_repository
from toolkit.releases import llm_api
from toolkit.releases.release import LATEST, RELEASES, WITHOUT_ENGINES, Release, release_of

MODULES = (
    *(file_rules, placeholder_rules, ensemble_rules, decoupled_rules, instance_rules),
    *(executor_rules, llmapi_rules, model_rules, engine_rules, text_rules),
)


def lint(folder: Path, engine: Path | None = None, release: str | None = None) -> list[Finding]:
    """The findings: errors first, then by file. `engine` is used instead of gpt_model_path.

    `release` is the release of TensorRT-LLM; by default the engine's, or the latest. Raises ToolkitError when the
    folder is not a model repository, the folder of `engine` cannot be read, or the release is not known.
    """
    if engine is not None:
        _check_readable(engine)
    repository = read_repository(folder, engine)
    without_engines = not repository.executors and bool(repository.llm_models)
    if engine is not None and without_engines:
        what = "no model in it loads an engine: the LLM API loads the Hugging Face model"
        raise ToolkitError(what, where=folder, hint="Leave --engine out.")
    known = _without_engines(release) if without_engines else _release(repository, release)
    found = {finding: None for module in MODULES for finding in module.check(repository, known)}
    return sorted(found, key=lambda finding: (finding.level != "error", str(finding.path), finding.line or 0))


def _check_readable(engine: Path) -> None:
    """Raise a ToolkitError for a folder that cannot be listed or entered. Not every repository has a model that reads
    it, so without this check a wrong path could go unnoticed."""
    try:
        list(engine.iterdir())
        (engine / "config.json").exists()  # raises for a folder that may be listed and not entered
    except OSError as error:
        hint = "Check its permissions." if isinstance(error, PermissionError) else "Give the folder of the engine."
        raise ToolkitError(f"--engine: cannot be opened: {error.strerror}", where=engine, hint=hint) from None


def _release(repository: Repository, name: str | None) -> Release:
    if name is None:
        engines = (executor.engine for executor in repository.executors if executor.engine)
        engine = next((engine for engine in engines if engine.version), None)
        return release_of(str(engine.version), where=engine.folder) if engine else LATEST
    if re.match(rf"{re.escape(WITHOUT_ENGINES.name)}(?!\d)", name):
        what = f"TensorRT-LLM {WITHOUT_ENGINES.name} has no engines, but this repository serves one"
        raise ToolkitError(what, where=repository.folder, hint=f"Use one of {', '.join(RELEASES)}.")
    return release_of(name)


def _without_engines(name: str | None) -> Release:
    """The release for a repository without engines. The LLM API has another range of releases."""
    known = llm_api.RELEASES[-1] if name is None else llm_api.llm_release_of(name)
    return RELEASES.get(known, WITHOUT_ENGINES)
