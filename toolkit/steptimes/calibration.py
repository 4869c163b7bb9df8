"""Reads a calibration file, of `toolkit calibrate`, and predicts with it instead of with the table of GPUs.

docs/reference/calibration-file.md describes the file. Nothing in it is trusted: it may come from another machine, or
from an editor.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from toolkit.errors import ToolkitError
from toolkit.files.json_file import read_json
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import DTYPE_BYTES, ModelShape
from toolkit.sizing.gpus import GPUS, Gpu, gpu_named
from toolkit.sizing.precision import Precision, precision_of
from toolkit.steptimes.calibration_rows import AGAIN, Row, crowding_row, layer_row, step_row
from toolkit.steptimes.fit import Timing, closed_form, fit_rates, predicted_s
from toolkit.steptimes.latency import ClosedForm
from toolkit.steptimes.measured import MeasuredStep, MeasuredSteps, fit_steps

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

FORMAT = "toolkit-step-times/1"
Kind = Literal["layers", "steps"]
LAYER_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""What decides the time of a layer."""


class Ratio(NamedTuple):
    """Measured over predicted: above 1 where it took longer than was said."""

    median: float
    low: float
    high: float


class Difference(NamedTuple):
    """How far predictions are from what was measured of one part (kind `layers`) or kind of step (`steps`)."""

    part: str
    tp: int
    points: int
    fastest_s: float
    slowest_s: float
    table: Ratio | None
    """Against the table's GPU, `hardware.gpu`; None for a GPU that is not there, and for steps."""
    fitted: Ratio | None
    """Against what is predicted from this file; None where there is no GPU to refit."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration file holds. Make one with `load`."""

    path: Path
    kind: Kind
    made: str
    device: dict[str, Any]
    dtype: str
    model: dict[str, int]
    parallel: RankMapping
    """The split of the steps; of layers 1 x 1, which says nothing."""
    timings: tuple[Timing, ...] = ()
    """Of kind `layers`."""
    steps: tuple[MeasuredStep, ...] = ()
    """Of kind `steps`."""
    crowding: tuple[tuple[int, float], ...] = ()
    """Of kind `steps`: (steps in flight, how many times longer each then takes in service)."""
    outside_s: float | None = None
    """Of kind `steps`: what a request spends outside of the engine before its first token comes to the client."""

    def step_times(self, deployment: Deployment) -> ClosedForm | MeasuredSteps:
        """Step times of the deployment, as measured. Raises ToolkitError for another model, kind or split."""
        self.require_fit(deployment)
        if self.kind == "steps":
            return self.measured_steps
        precision = precision_of(deployment)
        if precision.activation_bytes == 4:  # rates are fitted as if every dtype had two bytes
            precision = Precision()
        return ClosedForm(deployment.shape, deployment.mapping, self.gpu(deployment), precision)

    def gpu(self, deployment: Deployment) -> Gpu:
        """The deployment's GPU with the rates refitted; those of all-reduces and hops stay the table's."""
        table = gpu_named(deployment.hardware.gpu, where=deployment.file)
        return replace(table, rates=fit_rates(deployment.shape, table, self.timings))

    @cached_property
    def measured_steps(self) -> MeasuredSteps:
        return fit_steps(self.steps, self.parallel, self.crowding)

    def differences(self, deployment: Deployment) -> list[Difference]:
        """Measured against the table and against the refit, part by part; of steps against their own fit."""
        self.require_fit(deployment)
        return self._of_steps() if self.kind == "steps" else self._of_layers(deployment)

    def require_fit(self, deployment: Deployment) -> None:
        """Raise a ToolkitError unless this was measured for the deployment's model, kind of engine and split."""
        wanted = kind_of(deployment)
        if self.kind != wanted:
            what = f"kind: holds {self.kind}, but for engine {deployment.engine} it takes {wanted}"
            raise ToolkitError(what, where=self.path, hint=f"Run: toolkit calibrate {deployment.file}")
        for name, value in model_of(deployment.shape, self.kind).items():
            if self.model[name] != value:
                what = f"model.{name}: was measured with {self.model[name]}, the deployment has {value}"
                raise ToolkitError(what, where=self.path, hint=f"Run: toolkit calibrate {deployment.file}")
        if self.kind == "steps" and self.parallel != deployment.mapping:
            split, theirs = self.parallel, deployment.parallel
            what = f"parallel: was measured with tp {split.tp} x pp {split.pp}, the deployment says"
            what += f" tp {theirs.tp} x pp {theirs.pp}"
            raise ToolkitError(what, where=self.path, hint=f"Run: toolkit calibrate {deployment.file}")

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
    """What is measured for an engine: whole steps of a rehearsal, layers for any other."""
    return "steps" if not deployment.kind.on_gpus else "layers"


def model_of(shape: ModelShape, kind: Kind) -> dict[str, int]:
    """The fields of a model that decide its times; those of a step also depend on the number of layers."""
    names = LAYER_FIELDS if kind == "layers" else ("num_hidden_layers", *LAYER_FIELDS)
    return {name: getattr(shape, name) for name in names}


def load(path: str | Path) -> Calibration:
    """Read and check a calibration file. Raises ToolkitError, one line."""
    path = Path(path)
    content = read_json(path, missing="Make one with: toolkit calibrate CONFIG")
    return parse(content, path)


def parse(content: dict[str, Any], path: Path) -> Calibration:
    """The content of a calibration file, read from `path`, which errors name. Raises ToolkitError."""
    if content.get("format") != FORMAT:
        raise Row(content, path, "").wrong("format", f"{FORMAT!r}")
    top = Row(content, path, "")
    kind: Kind = top.choice("kind", get_args(Kind))
    model, device = Row(content.get("model"), path, "model."), Row(content.get("device"), path, "device.")
    names = LAYER_FIELDS if kind == "layers" else ("num_hidden_layers", *LAYER_FIELDS)
    device.count("cores", 1)
    split = Row(content.get("parallel"), path, "parallel.") if kind == "steps" else None
    parallel = RankMapping(split.count("tp", 1), split.count("pp", 1)) if split else RankMapping()
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows:
        raise ToolkitError("rows: there are none, expected at least one", where=path, hint=AGAIN)
    checked = [Row(row, path, f"rows[{index}].") for index, row in enumerate(rows)]
    return Calibration(
        path=path,
        kind=kind,
        made=str(content.get("made", "")),
        device=dict(device.values),
        dtype=top.choice("dtype", tuple(DTYPE_BYTES)),
        model={name: model.count(name, 1) for name in names},
        parallel=parallel,
        timings=tuple(map(layer_row, checked)) if kind == "layers" else (),
        steps=tuple(step_row(row, parallel.pp) for row in checked) if kind == "steps" else (),
        crowding=_crowding(content, path) if kind == "steps" else (),
        outside_s=top.number("outside_seconds", zero=True) if kind == "steps" else None,
    )


def _crowding(content: dict[str, Any], path: Path) -> tuple[tuple[int, float], ...]:
    found = content.get("crowding")
    if not isinstance(found, list):
        raise Row(content, path, "").wrong("crowding", "a list")
    return tuple(crowding_row(Row(row, path, f"crowding[{index}].")) for index, row in enumerate(found))


def _difference(
    part: str, tp: int, measured: list[float], table: list[float] | None, fitted: list[float] | None
) -> Difference:
    ratios = [_ratio(measured, one) if one else None for one in (table, fitted)]
    return Difference(part, tp, len(measured), min(measured), max(measured), *ratios)


def _ratio(measured: Iterable[float], predicted: Iterable[float]) -> Ratio:
    found = [one / other for one, other in zip(measured, predicted, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))
