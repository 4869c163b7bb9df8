"""The parts of `toolkit plan`, in the order in which they become known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.fallbacks import fallbacks_of
from toolkit.errors import ToolkitError
from toolkit.files.atomic import check_writable
from toolkit.plan.claim import Claim
from toolkit.plan.claims import claims
from toolkit.plan.fallbacks import FallbackPlan, plan_fallback
from toolkit.plan.layouts import Comparison, Layout, Remedy, compare
from toolkit.plan.predict import Estimator, Predict, Prediction, predict
from toolkit.plan.remedies import remedies
from toolkit.plan.seeds import Spread, spread_of
from toolkit.plan.show import data
from toolkit.plan.tuning import Objective
from toolkit.steptimes.calibration import Calibration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toolkit.config.deployment import Deployment
    from toolkit.plan.fleet.fleet import FleetPlan

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """A deployment's plan; each part is computed when it is first asked for."""

    deployment: Deployment
    with_comparison: bool = False
    with_claims: bool = False
    objective: Objective = "slo"
    progress: Progress | None = None
    estimator: Estimator = "table"

    def __post_init__(self) -> None:
        """Raises ToolkitError for options that need GPUs, if the deployment is a rehearsal, and for a fallback that
        could not take over: before anything is printed."""
        _ = self._named_fallbacks
        for option, given in (
            ("--compare", self.with_comparison),
            ("--claims", self.with_claims),
            ("--estimator aiconfigurator", self.estimator == "aiconfigurator"),
        ):
            if given and not self.deployment.kind.on_gpus:
                hint = "Add --engine tensorrt and the GPU: --hardware h100-sxm."
                raise ToolkitError(f"{option}: a rehearsal has no GPUs", where=self.deployment.file, hint=hint)

    @property
    def predictable(self) -> bool:
        """Whether there can be a prediction. The step times of a rehearsal are known only from a calibration."""
        return self.deployment.kind.on_gpus or isinstance(self.estimator, Calibration)

    @property
    def predict(self) -> Predict:
        """predict() with the estimator. It can be sent to other processes."""
        return partial(predict, estimator=self.estimator)

    @cached_property
    def _layout(self) -> Layout | None:
        """The layout of a comparison whose figures are shown: the user's own if it is in it, else the best."""
        return (self.comparison.own or self.comparison.best) if self.with_comparison else None

    @property
    def shown(self) -> Deployment:
        """The deployment whose figures are shown."""
        return self._layout.deployment if self._layout else self.deployment

    @property
    def fits(self) -> bool:
        """Whether the layout that is shown fits. A comparison may show one that does not."""
        return self._layout is None or self._layout.prediction is not None

    @cached_property
    def prediction(self) -> Prediction:
        compared = self._layout.prediction if self._layout else None
        return compared or self.predict(self.shown)

    @cached_property
    def spread(self) -> Spread | None:
        """The range of the figures over other seeds. None for a comparison, which would take too long."""
        return None if self.with_comparison else spread_of(self.prediction, lambda: self.remedies)

    @property
    def meets(self) -> bool:
        """Whether the prediction meets the SLO. Raises ToolkitError where there is no prediction."""
        from toolkit.plan.show import report

        if not self.predictable:
            raise ToolkitError("--check: there is no prediction", hint=report.calibrate_hint(self.deployment))
        return self.fits and self.prediction.meets_slo

    @cached_property
    def remedies(self) -> tuple[Remedy, ...]:
        """What would help if the SLO is missed, the best first."""
        return remedies(self.prediction, self.predict, self.comparison if self.with_comparison else None)

    @cached_property
    def comparison(self) -> Comparison:
        return compare(self.deployment, self.objective, self.progress, self.predict)

    @cached_property
    def _named_fallbacks(self) -> tuple[Deployment, ...]:
        return fallbacks_of(self.deployment)

    @cached_property
    def fallbacks(self) -> tuple[FallbackPlan, ...]:
        """What each of `recovery.fallback` leaves of the capacity of the deployment in the YAML."""
        fallbacks = self._named_fallbacks
        own = self.predict(self.deployment) if fallbacks and self.predictable else None
        return tuple(plan_fallback(self.deployment, fallback, own, self.predict) for fallback in fallbacks)

    @cached_property
    def claims(self) -> list[Claim]:
        return claims(self.prediction, self.predict)

    def as_data(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        parts = data.memory_data(self.shown)
        if isinstance(self.estimator, Calibration):
            parts["calibration"] = data.calibration_data(self.estimator, self.deployment)
        if self.predictable and self.fits:
            parts["prediction"] = data.prediction_data(self.prediction, spread=self.spread, remedies=self.remedies)
        if self.fallbacks:
            parts["fallbacks"] = [fallback.data() for fallback in self.fallbacks]
        if self.with_comparison:
            parts["comparison"] = data.comparison_data(self.comparison)
        if self.with_claims:
            parts["claims"] = data.claims_data(self.claims)
        return parts

    def as_text(self, charts: bool = False) -> Iterator[RenderableType]:
        """The parts for a terminal of 100 columns, each as soon as it is known."""
        from toolkit.plan.show import report
        from toolkit.plan.show.rate_chart import rate_chart
        from toolkit.plan.show.report_memory import memory_text
        from toolkit.plan.sweep import curve

        if self.predictable:
            self.predict(self.deployment).traffic  # noqa: B018 - an error in the workload comes before any output
        yield memory_text(self.shown)
        if not self.predictable:
            yield from self._fallback_text()
            yield report.calibrate_text(self.deployment)
            return
        if self.fits:
            yield from self._predicted()
            if charts and (points := curve(self.prediction)):
                yield rate_chart(points, self.prediction.deployment.slo, self.prediction.traffic.rate)
        yield from self._fallback_text()
        if self.with_comparison:
            yield report.comparison_text(self.comparison)
            yield report.own_text(self.comparison)

    def _fallback_text(self) -> Iterator[RenderableType]:
        from toolkit.plan.show import report

        if self.fallbacks:
            yield report.fallback_text(self.fallbacks)

    def _predicted(self) -> Iterator[RenderableType]:
        from toolkit.plan.show import report

        yield report.step_text(self.prediction)
        if isinstance(self.estimator, Calibration):
            yield report.calibration_text(self.estimator, self.deployment)
        if self.with_claims:
            yield report.claims_text(self.claims)
        yield report.prediction_text(self.prediction, spread=self.spread, remedies=self.remedies)

    def check_page(self, file: Path) -> None:
        """Raise a ToolkitError before the work starts, if `write_page` could not write."""
        from toolkit.plan.show import report

        if not self.predictable:
            raise ToolkitError("--html: there is no prediction to show", hint=report.calibrate_hint(self.deployment))
        check_writable(file)

    def write_page(self, file: Path, fleet: FleetPlan | None = None) -> None:
        """Write the plan as an HTML page, with a fleet if there is one."""
        from toolkit.plan.show.page import write_page

        comparison = self.comparison if self.with_comparison else None
        write_page(file, self.prediction, comparison, self.remedies, self.progress, self.spread, fleet)
