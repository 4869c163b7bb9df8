"""Finds what would make a deployment meet its SLO: other batch limits, another layout, or FP8. Each remedy is
simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from toolkit.config.deployment import with_settings
from toolkit.plan.bounds import Bounds
from toolkit.plan.layouts import Comparison, Remedy, layout_name, variants
from toolkit.plan.predict import Predict, Prediction
from toolkit.plan.tuning import Ceiling, Tuned, fits, held, in_time_alone, tuned, with_most_sequences
from toolkit.processes import forked_pool
from toolkit.simulate.capacity import PRECISION
from toolkit.sizing.gpus import GPUS
from toolkit.slo.verdict import OF_THE_GPUS

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Candidate = Callable[[], Tuned | None]
SETTINGS = (
    ("parallel", ("tp", "pp", "replicas")),
    ("model", ("quantization",)),
    ("limits", ("max_num_tokens", "max_sequences")),
)
"""The settings that a remedy may change, in the order of its text."""


def remedies(prediction: Prediction, predict: Predict, comparison: Comparison | None = None) -> tuple[Remedy, ...]:
    """The remedies: those that meet the SLO first, then by their rate. None for a deployment that meets its SLO.

    More sequences than the YAML allows, and FP8, are tried only where neither lower limits nor another layout helps.
    They are not tried either where only a target for the GPUs is missed: serving more does not make GPUs busier. With a
    comparison, its layouts are used and not simulated again.
    """
    if not prediction.overload and prediction.meets_slo:
        return ()
    if comparison:
        others = [row.prediction for row in (comparison.own_row, comparison.best) if row and row.prediction]
    else:
        others = evaluated(_limits_and_layout(prediction, predict), meanwhile=lambda: prediction.meets_slo)
    if prediction.meets_slo:
        return ()
    if not any(all(target.name in OF_THE_GPUS for target in other.verdict.missed) for other in others):
        same = [other for other in others if other.deployment.parallel == prediction.deployment.parallel]
        others += evaluated(_sequences_and_precision(same[0] if same else prediction, prediction, predict))
    better = [remedy for other in others if (remedy := _remedy(prediction, other))]
    return tuple(
        sorted(dict.fromkeys(better), key=lambda remedy: (not remedy.meets_slo, -(remedy.requests_per_s or 0.0)))
    )


def _limits_and_layout(prediction: Prediction, predict: Predict) -> Iterator[Candidate]:
    """The best limits within the YAML's limits, for this layout and for the likeliest other one."""
    deployment, within = prediction.deployment, Ceiling.of(prediction.deployment)
    if in_time_alone(prediction):
        yield partial(tuned, deployment, within, predict, "slo")
    if deployment.kind.on_gpus:  # whose other layouts were not measured
        other = likely_layout(deployment, within, predict)
        if other:
            yield partial(tuned, other, within, predict, "slo")


def _sequences_and_precision(start: Prediction, prediction: Prediction, predict: Predict) -> Iterator[Candidate]:
    """More sequences than the YAML allows, and FP8, both with the tokens per step of `start`."""
    deployment, within = start.deployment, Ceiling.of(prediction.deployment)
    room = held(start)
    if in_time_alone(start) and room > within.each and _helped_by_sequences(start, room):
        yield partial(with_most_sequences, deployment, Ceiling(within.tokens, room, room), predict)
    gpu = GPUS.get(deployment.hardware.gpu)
    if gpu and gpu.flops_fp8 and deployment.model.quantization == "none" and deployment.kind.on_gpus:
        quantised = with_settings(deployment, model={"quantization": "fp8"})
        yield partial(with_most_sequences, quantised, within, predict)


def evaluated(
    candidates: Iterable[Candidate],
    meanwhile: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """The predictions of the candidates that fit, each made in a process of its own.

    `meanwhile` is called in this process.
    """
    tasks, found = list(candidates), []
    with forked_pool(len(tasks)) as pool:
        futures = [pool.submit(_predicted, task) for task in tasks]
        meanwhile()
        for future in futures:
            found.append(future.result())
            progress(len(found), len(tasks))
    return [prediction for prediction in found if prediction]


def _predicted(candidate: Candidate) -> Prediction | None:
    """The prediction with its verdict, which is computed here, in the process of the candidate."""
    found = candidate()
    if found is None:
        return None
    _ = found.prediction.verdict
    return found.prediction


def _helped_by_sequences(prediction: Prediction, room: int) -> bool:
    """Whether a replica could serve more with as many sequences as its KV pool holds, by the bounds."""
    bounds, limits = Bounds.of(prediction), prediction.deployment.limits
    now = limits.max_sequences // prediction.deployment.parallel.replicas
    few, many = (bounds.rate(max(1, count), limits.max_num_tokens) for count in (now, room))
    return many > few * (1 + PRECISION)


def likely_layout(deployment: Deployment, ceiling: Ceiling, predict: Predict) -> Deployment | None:
    """The other layout that could serve most, by the bounds. If the SLO has a band of GPU utilisation, a pipeline."""
    others = [other for other in variants(deployment) if other.parallel != deployment.parallel and fits(other)]
    if deployment.slo.gpu_utilisation and any(other.parallel.pp > 1 for other in others):
        others = [other for other in others if other.parallel.pp > 1]
    rates = {}
    for number, other in enumerate(others):
        prediction = predict(other)
        if in_time_alone(prediction):
            sequences = min(ceiling.of_replica(other), held(prediction))
            rates[number] = other.parallel.replicas * Bounds.of(prediction).rate(sequences, ceiling.tokens)
    return others[max(rates, key=lambda number: rates[number])] if rates else None


def _remedy(prediction: Prediction, other: Prediction) -> Remedy | None:
    """The remedy with the settings of `other`; None where these improve nothing."""
    rate, before = other.capacity.highest, prediction.capacity.highest or 0.0
    settings = _settings(prediction.deployment, other.deployment)
    if not settings or not (other.meets_slo or (rate or 0.0) > before * (1 + PRECISION)):
        return None
    return Remedy(settings, rate, other.meets_slo, tuple(target.label for target in other.verdict.missed))


def _settings(before: Deployment, after: Deployment) -> str:
    """FIELD: VALUE for each setting that differs; a layout by its name."""
    settings = []
    for section, names in SETTINGS:
        old, new = getattr(before, section), getattr(after, section)
        changed = [name for name in names if getattr(old, name) != getattr(new, name)]
        if section == "parallel" and changed:
            settings.append(f"layout {layout_name(after)}")
        else:
            settings += [f"{section}.{name}: {getattr(new, name)}" for name in changed]
    return ", ".join(settings)
