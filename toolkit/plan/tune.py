"""What would serve the traffic better: settings for the engines that there are, and settings that need others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.deployment import with_settings
from toolkit.config.edit_yaml import inline
from toolkit.errors import ToolkitError
from toolkit.plan.predict import Predict, Prediction, predict
from toolkit.plan.remedies import Candidate, evaluated, likely_layout
from toolkit.plan.tuning import Ceiling, Tuned, held, in_time_alone, tuned, with_most_sequences
from toolkit.simulate.capacity import PRECISION
from toolkit.sizing.gpus import GPUS
from toolkit.steptimes.calibration import Calibration

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

SWITCHES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("scheduler", "policy", ("guaranteed_no_evict", "max_utilization")),
    ("scheduler", "chunked_context", (True, False)),
    ("kv_cache", "reuse", (True, False)),
)
"""(section, field, its values): settings of a server, which every engine of ours allows."""
SECTIONS = ("parallel", "model", "limits", "kv_cache", "scheduler")
"""The sections that a change may be in."""


@dataclass(frozen=True)
class Change:
    """Other settings, and what is predicted with them under the same traffic."""

    settings: dict[str, Any]
    """Value by "section.key"."""
    needs_engine: bool
    """Whether other engines must be built first."""
    prediction: Prediction

    @property
    def text(self) -> str:
        """NAME=VALUE, with spaces between."""
        return " ".join(f"{name}={inline(value)}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Advice:
    """The prediction as things are, and the changes that give more, the best first."""

    now: Prediction
    changes: tuple[Change, ...]

    @property
    def best_without_engine(self) -> Change | None:
        """Never one that misses an SLO which is met as things are."""
        same = (change for change in self.changes if not change.needs_engine)
        return next((one for one in same if one.prediction.meets_slo or not self.now.meets_slo), None)

    def gain(self, change: Change) -> float | None:
        """How many more requests/s meet the latencies, as a share; None where now none does."""
        now, then = self.now.capacity.highest, change.prediction.capacity.highest
        return then / now - 1 if now and then is not None else None


def with_traffic(deployment: Deployment, trace: Path | None) -> Deployment:
    """The deployment with the requests of a trace, at their times, as its workload.

    Without a trace it is what `monitoring.traffic` has kept. Raises ToolkitError where nothing was kept.
    """
    kept = deployment.monitoring.traffic
    if trace is None and kept is None:
        hint = "Name a file there, and serve for a while; or give --traffic FILE."
        raise ToolkitError("monitoring.traffic: missing, so no traffic is kept", where=deployment.file, hint=hint)
    if trace is None and kept and not kept.is_file():
        hint = "It is written while the deployment serves; or give --traffic FILE."
        raise ToolkitError(f"monitoring.traffic: {kept} is not there yet", where=deployment.file, hint=hint)
    return with_settings(deployment, workload={"trace": trace or kept, "arrivals": "trace", "rate": None})


def predict_with(deployment: Deployment, calibration: Calibration | None) -> Predict:
    """How to predict. Raises ToolkitError for a rehearsal without a calibration."""
    if not deployment.kind.on_gpus and not calibration:
        then = deployment.command("tune", "--calibration", "FILE")
        hint = f"Run: {deployment.command('calibrate')}, then: {then}"
        raise ToolkitError("how long steps take in a rehearsal is not known", where=deployment.file, hint=hint)
    return partial(predict, estimator=calibration or "table")


def advise(deployment: Deployment, estimate: Predict, progress: Callable[[int, int], None]) -> Advice:
    """Try settings under the deployment's workload: each switch alone, those that help together, and other engines."""
    now = estimate(deployment)
    candidates = [*_switched(now, estimate), *_rebuilt(now, estimate)]
    found = evaluated([partial(_whole, one) for one in candidates], lambda: now.capacity, progress)
    changes = [change for other in found if (change := _change(now, other))]
    switches = [change for change in changes if not change.needs_engine]
    if len(switches) > 1:
        together: dict[str, Any] = {}
        for change in reversed(_ranked(switches)):
            together |= change.settings
        both = evaluated([partial(_whole, partial(_alone, _changed(deployment, together), estimate))])
        changes += [change for other in both if (change := _change(now, other))]
    return Advice(now, tuple(_ranked(changes)))


def _switched(now: Prediction, predict: Predict) -> Iterator[Candidate]:
    """Each setting of SWITCHES with its other value."""
    for section, field, values in SWITCHES:
        value = getattr(getattr(now.deployment, section), field)
        (other,) = (one for one in values if one != value)
        yield partial(_alone, with_settings(now.deployment, **{section: {field: other}}), predict)


def _rebuilt(now: Prediction, predict: Predict) -> Iterator[Candidate]:
    """Other batch limits within those of the YAML and beyond, the likeliest other layout, and FP8."""
    deployment, within, room = now.deployment, Ceiling.of(now.deployment), held(now)
    if in_time_alone(now):
        yield partial(tuned, deployment, within, predict, "slo")
        if room > within.each:
            yield partial(with_most_sequences, deployment, Ceiling(within.tokens, room, room), predict)
    if not deployment.kind.on_gpus:  # whose other layouts were not measured
        return
    if other := likely_layout(deployment, within, predict):
        yield partial(tuned, other, within, predict, "slo")
    gpu = GPUS.get(deployment.hardware.gpu)
    if gpu and gpu.flops_fp8 and deployment.model.quantization == "none":
        quantised = with_settings(deployment, model={"quantization": "fp8"})
        yield partial(with_most_sequences, quantised, within, predict)


def _alone(deployment: Deployment, predict: Predict) -> Tuned:
    return Tuned(predict(deployment))


def _whole(candidate: Candidate) -> Tuned | None:
    """The candidate with its capacity, which is computed here, in the process of the candidate."""
    found = candidate()
    if found:
        _ = found.prediction.capacity
    return found


def _change(now: Prediction, other: Prediction) -> Change | None:
    """The change that `other` is; None where it is none, or serves no more and does not meet an SLO that is missed."""
    settings = {
        f"{section}.{key}": value
        for section in SECTIONS
        for key, value in getattr(other.deployment, section).model_dump(mode="json").items()
        if value != getattr(now.deployment, section).model_dump(mode="json")[key]
    }
    more = (other.capacity.highest or 0.0) > (now.capacity.highest or 0.0) * (1 + PRECISION)
    if not settings or not (more or (other.meets_slo and not now.meets_slo)):
        return None
    return Change(settings, other.deployment.built_for != now.deployment.built_for, other)


def _changed(deployment: Deployment, settings: dict[str, Any]) -> Deployment:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return with_settings(deployment, **sections)


def _ranked(changes: list[Change]) -> list[Change]:
    """The best first: those that meet the SLO, then by requests/s; of equal ones, those that need no engine."""

    def place(change: Change) -> tuple[bool, float, bool]:
        prediction = change.prediction
        return not prediction.meets_slo, -(prediction.capacity.highest or 0.0), change.needs_engine

    return sorted(changes, key=place)
