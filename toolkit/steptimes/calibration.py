"""Predicts with a calibration file of `toolkit calibrate` instead of with the table of GPUs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from toolkit.errors import ToolkitError
from toolkit.files.invalid import first_problem
from toolkit.files.json_file import read_json
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape
from toolkit.sizing.gpus import GPUS, Gpu, gpu_named
from toolkit.sizing.node_link import node_link_of
from toolkit.sizing.precision import Precision, precision_of
from toolkit.steptimes.calibration_file import MODELS, CalibrationFile, Kind, LayersFile, StepsFile, validated
from toolkit.steptimes.fit import Timing, closed_form, fit_rates, predicted_s
from toolkit.steptimes.latency import ClosedForm, overheads_of
from toolkit.steptimes.measured import MeasuredStep, MeasuredSteps, fit_steps

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

AGAIN = "Make the file again: toolkit calibrate CONFIG"


class Ratio(NamedTuple):
    """Measured over predicted time: above 1 where the measurement took longer."""

    median: float
    low: float
    high: float


class Difference(NamedTuple):
    """Measured compared with predicted times, for one part of a layer (kind `layers`) or one kind of step (`steps`)."""

    part: str
    tp: int
    points: int
    fastest_s: float
    slowest_s: float
    table: Ratio | None
    """Compared with the planner's table for `hardware.gpu`; None for a GPU that the table lacks, and for steps."""
    fitted: Ratio | None
    """Compared with the prediction from this file; None where the table lacks the GPU."""


@dataclass(frozen=True)
class Calibration:
    """A calibration file. Make one with `load`."""

    path: Path
    content: CalibrationFile

    @property
    def kind(self) -> Kind:
        return self.content.kind

    @property
    def parallel(self) -> RankMapping:
        """How the steps were split over ranks. A layer is timed alone, so for layers this says nothing."""
        if isinstance(self.content, LayersFile):
            return RankMapping()
        return RankMapping(self.content.parallel.tp, self.content.parallel.pp)

    @cached_property
    def timings(self) -> tuple[Timing, ...]:
        """The times of kind `layers`."""
        return tuple(row.timing for row in self.content.rows) if isinstance(self.content, LayersFile) else ()

    @cached_property
    def steps(self) -> tuple[MeasuredStep, ...]:
        """The times of kind `steps`."""
        return tuple(row.measured for row in self.content.rows) if isinstance(self.content, StepsFile) else ()

    @property
    def crowding(self) -> tuple[tuple[int, float], ...]:
        """(steps in flight, how many times longer each then takes in service); for kind `steps`."""
        rows = self.content.crowding if isinstance(self.content, StepsFile) else ()
        return tuple((row.in_flight, row.slowdown) for row in rows)

    @property
    def outside_s(self) -> float | None:
        """What a request spends outside of the engine before its first token reaches the client; for kind `steps`."""
        return self.content.outside_seconds if isinstance(self.content, StepsFile) else None

    def step_times(self, deployment: Deployment) -> ClosedForm | MeasuredSteps:
        """The deployment's step times, as measured. Raises ToolkitError for another model, kind or split."""
        self.require_fit(deployment)
        if self.kind == "steps":
            return self.measured_steps
        precision = precision_of(deployment)
        if precision.activation_bytes == 4:  # the rates are fitted as if every dtype had two bytes
            precision = Precision()
        overheads = overheads_of(deployment.kind)
        gpu, link = self.gpu(deployment), node_link_of(deployment)
        return ClosedForm(deployment.shape, deployment.mapping, gpu, precision, overheads, link)

    def gpu(self, deployment: Deployment) -> Gpu:
        """The deployment's GPU with refitted rates. The rates for all-reduces and hops stay those of the table."""
        table = gpu_named(deployment.hardware.gpu, where=deployment.file)
        return replace(table, rates=fit_rates(deployment.shape, table, self.timings))

    @cached_property
    def measured_steps(self) -> MeasuredSteps:
        return fit_steps(self.steps, self.parallel, self.crowding)

    def differences(self, deployment: Deployment) -> list[Difference]:
        """Each part of a layer compared with the table and with the refit; steps compared with their own fit."""
        self.require_fit(deployment)
        return self._of_steps() if self.kind == "steps" else self._of_layers(deployment)

    def require_fit(self, deployment: Deployment) -> None:
        """Raise a ToolkitError unless this was measured for the deployment's model, kind of engine and split."""
        needed = kind_of(deployment)
        if self.kind != needed:
            what = f"kind: holds {self.kind}, but engine {deployment.engine} needs {needed}"
            raise ToolkitError(what, where=self.path, hint=f"Run: {deployment.command('calibrate')}")
        for name, value in model_of(deployment.shape, self.kind).items():
            measured = getattr(self.content.model, name)
            if measured != value:
                what = f"model.{name}: was measured with {measured}, the deployment has {value}"
                raise ToolkitError(what, where=self.path, hint=f"Run: {deployment.command('calibrate')}")
        if self.kind == "steps" and self.parallel != deployment.mapping:
            split, theirs = self.parallel, deployment.parallel
            what = f"parallel: was measured with tp {split.tp} x pp {split.pp}, the deployment says"
            what += f" tp {theirs.tp} x pp {theirs.pp}"
            raise ToolkitError(what, where=self.path, hint=f"Run: {deployment.command('calibrate')}")

    def _of_steps(self) -> list[Difference]:
        found = defaultdict(list)
        for step in self.steps:
            found[step.kind].append(step)
        fit = self.measured_steps
        return [
            _difference(
                kind,
                self.parallel.tp,
                [step.step_seconds for step in steps],
                None,
                [fit.step_seconds(step.work) for step in steps],
            )
            for kind, steps in found.items()
        ]

    def _of_layers(self, deployment: Deployment) -> list[Difference]:
        table = GPUS.get(deployment.hardware.gpu)
        fitted = self.gpu(deployment) if table else None
        found = defaultdict(list)
        for timing in self.timings:
            found[timing.part, timing.tp].append(timing)

        def by(gpu: Gpu | None, timings: list[Timing]) -> list[float] | None:
            form = gpu and closed_form(deployment.shape, gpu, timings[0].tp, fp8=False)
            return [predicted_s(form, timing) for timing in timings] if form else None

        return [
            _difference(*key, [timing.seconds for timing in timings], by(table, timings), by(fitted, timings))
            for key, timings in found.items()
        ]


def kind_of(deployment: Deployment) -> Kind:
    """What is measured for an engine: whole steps for a rehearsal, layers for every other engine."""
    return "steps" if not deployment.kind.on_gpus else "layers"


def model_of(shape: ModelShape, kind: Kind) -> dict[str, int]:
    """The fields of a model that decide its times. Those of whole steps include the number of layers."""
    return {name: getattr(shape, name) for name in MODELS[kind].model_fields}


def load(path: str | Path) -> Calibration:
    """Read and check a calibration file. Raises ToolkitError, one line."""
    path = Path(path)
    content = read_json(path, missing="Make one with: toolkit calibrate CONFIG")
    return parse(content, path)


def parse(content: dict[str, Any], path: Path) -> Calibration:
    """The content of a calibration file, read from `path`, which errors name. Raises ToolkitError."""
    try:
        return Calibration(path, validated(content))
    except ValidationError as error:
        raise ToolkitError(first_problem(error).line, where=path, hint=AGAIN) from None


def _difference(
    part: str, tp: int, measured: list[float], table: list[float] | None, fitted: list[float] | None
) -> Difference:
    ratios = [_ratio(measured, one) if one else None for one in (table, fitted)]
    return Difference(part, tp, len(measured), min(measured), max(measured), *ratios)


def _ratio(measured: Iterable[float], predicted: Iterable[float]) -> Ratio:
    found = [one / other for one, other in zip(measured, predicted, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))
