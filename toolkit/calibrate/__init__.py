"""Measures step times on this machine, which the planner can use instead of its table.

For an engine on GPUs: the parts of a layer, on one GPU (`layers`). For a rehearsal: whole steps on its real ranks
(`steps`), and how much longer they take in service (`service`). docs/reference/calibration-file.md describes the
file that is written; toolkit/steptimes/calibration_file.py is its form.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.steptimes.calibration import kind_of, model_of
from toolkit.steptimes.calibration_file import FORMAT, CalibrationFile, StepRow, validated
from toolkit.steptimes.measured import fit_steps

BUDGET_S = {"layers": 120.0, "steps": 140.0}
"""Seconds of measuring. Starting and warming up come on top."""
IN_SERVICE = 0.4
"""The part of a rehearsal's budget that is spent on measuring in service."""


def calibrate(
    deployment: Deployment, tell: Callable[[int, int], None] | None = None, budget_s: float | None = None
) -> CalibrationFile:
    """The content of a calibration file, measured now. `tell` is called with (things timed, things in all).

    Raises ToolkitError where there is no GPU for a large model, or when a rehearsal cannot be served now.
    """
    kind = kind_of(deployment)
    _require_torch(kind)
    measure = _measure_steps if kind == "steps" else _measure_layers
    measured = measure(deployment, budget_s or BUDGET_S[kind], tell or (lambda done, total: None))
    versions = {"toolkit": distribution.VERSION, "torch": importlib.metadata.version("torch")}
    header = {
        "format": FORMAT,
        "kind": kind,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "model": model_of(deployment.shape, kind),
    }
    return validated({**header, **measured})


def _require_torch(kind: str) -> None:
    distribution.require("rehearsal" if kind == "steps" else "convert", "torch")


def _measure_layers(deployment: Deployment, budget_s: float, tell: Callable[[int, int], None]) -> dict[str, Any]:
    from toolkit.calibrate.layers import time_layers

    return time_layers(deployment, budget_s, tell)


def _measure_steps(deployment: Deployment, budget_s: float, tell: Callable[[int, int], None]) -> dict[str, Any]:
    from toolkit.calibrate.service import time_service
    from toolkit.calibrate.steps import engine_settings, time_steps
    from toolkit.serve.preflight import check

    _require_one_replica(deployment)
    engine_settings(deployment)
    check(deployment)  # now, rather than after a minute of measuring
    measured = time_steps(deployment, (1 - IN_SERVICE) * budget_s, tell)
    alone = fit_steps([StepRow(**row).measured for row in measured["rows"]], deployment.mapping)
    return {**measured, **time_service(deployment, alone, IN_SERVICE * budget_s, tell)}


def _require_one_replica(deployment: Deployment) -> None:
    """Raise a ToolkitError for replicas: they share the machine's cores, so the steps of one alone say too little."""
    if deployment.parallel.replicas > 1:
        what = (
            f"parallel.replicas: {deployment.parallel.replicas} replicas share the cores, but one is measured at a time"
        )
        raise ToolkitError(what, where=deployment.file, hint="Set it to 1.")


def planned(deployment: Deployment) -> list[str]:
    """A line for each thing that would be timed. Raises ToolkitError if it could not be timed."""
    kind = kind_of(deployment)
    _require_torch(kind)
    if kind == "steps":
        from toolkit.calibrate.grid import grid
        from toolkit.calibrate.steps import engine_settings, named

        _require_one_replica(deployment)
        return [named(plan) for plan in grid(engine_settings(deployment).scheduling)]
    from toolkit.calibrate.layers import named_point, points, require_device

    require_device(deployment)
    return [named_point(point) for point in points(deployment)]


def save(content: CalibrationFile, path: Path) -> None:
    """Write a calibration file, whole or not at all. Raises ToolkitError where it cannot be written."""
    draft = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(content.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=path, hint="Use --output FILE.") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
