"""Workload files: YAML with the keys of a deployment's `workload`, and more keys for load tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from toolkit.config.load import explain
from toolkit.config.workload import LoadWorkload, check_workload
from toolkit.files.yaml_file import absolute_path, read_yaml

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def load_workload(file: str | Path) -> LoadWorkload:
    """Read and check a workload file. Its paths are relative to its own folder. Raises ToolkitError."""
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
    """The `workload` of a deployment's YAML, for a load test without a file."""
    workload = deployment.workload
    return LoadWorkload.model_validate({name: getattr(workload, name) for name in workload.model_fields_set})
