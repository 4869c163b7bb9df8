"""Workload files: YAML with the keys of a deployment's `workload` and those that only a load test has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from toolkit.config.load import explain
from toolkit.config.sections import LoadWorkload
from toolkit.config.workload_rules import check_workload
from toolkit.files.yaml_file import absolute_path, read_yaml

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def load_workload(file: str | Path) -> LoadWorkload:
    """Read and check a workload file; its paths are relative to its own folder. Raises ToolkitError, one line."""
    file = Path(file)
    content = read_yaml(file, examples="workloads")
    for name in ("prompts", "trace"):
        if name in content:
            content[name] = absolute_path(content[name], file, name)
    try:
        workload = LoadWorkload.model_validate(content)
    except ValidationError as error:
        raise explain(error, file, LoadWorkload) from None
    check_workload(workload, file)
    return workload


def workload_of(deployment: Deployment) -> LoadWorkload:
    """The workload that a deployment's YAML says, for a load test without a file."""
    given = deployment.workload
    return LoadWorkload.model_validate({name: getattr(given, name) for name in given.model_fields_set})
