"""What would make a deployment meet its SLO: other batch limits, another layout, FP8. Each is simulated, and named with
what it gives."""

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
"""What a remedy may change, in the order in which it is named."""


def remedies(prediction: Prediction, predict: Predict, comparison: Comparison | None = None) -> tuple[Remedy, ...]:
    """Those that meet the SLO first, then by their rate; none for a deployment that meets it.

    More sequences than the YAML allows, and FP8, are tried only where neither lower limits nor another layout will do,
    and not where all that these miss is what the SLO wants of the GPUs: to serve more does not make them busier.
    With a comparison the layouts are those of it, and are not simulated again.
    """
    if not prediction.overload and prediction.meets_slo:
        return ()
    if comparison:
        found = [row.prediction for row in (comparison.own_row, comparison.best) if row and row.prediction]
    else:
        found = _evaluated(_limits_and_layout(prediction, predict), meanwhile=lambda: prediction.meets_slo)
    if prediction.meets_slo:
        return ()
    if not any(all(target.name in OF_THE_GPUS for target in one.verdict.missed) for one in found):
        same = [one for one in found if one.deployment.parallel == prediction.deployment.parallel]
        found += _evaluated(_sequences_and_precision(same[0] if same else prediction, prediction, predict))
    better = [remedy for one in found if (remedy := _remedy(prediction, one))]
    return tuple(sorted(dict.fromkeys(better), key=lambda one: (not one.meets_slo, -(one.requests_per_s or 0.0))))


def _limits_and_layout(prediction: Prediction, predict: Predict) -> Iterator[Candidate]:
    """The best limits below those of the YAML, and those of the likeliest other layout."""
    deployment, within = prediction.deployment, Ceiling.of(prediction.deployment)
    if in_time_alone(prediction):
        yield partial(tuned, deployment, within, predict, "slo")
    if deployment.kind.on_gpus:  # whose other layouts were not measured
        other = _likely_layout(deployment, within, predict)
        if other:
            yield partial(tuned, other, within, predict, "slo")


def _sequences_and_precision(start: Prediction, prediction: Prediction, predict: Predict) -> Iterator[Candidate]:
    """More sequences than the YAML has, and FP8, both with the tokens a step of `start`."""
    deployment, within = start.deployment, Ceiling.of(prediction.deployment)
    room = held(start)
    if in_time_alone(start) and room > within.each and _helped_by_sequences(start, room):
        yield partial(with_most_sequences, deployment, Ceiling(within.tokens, room, room), predict)
    gpu = GPUS.get(deployment.hardware.gpu)
    if gpu and gpu.flops_fp8 and deployment.model.quantization == "none" and deployment.kind.on_gpus:
        quantised = with_settings(deployment, model={"quantization": "fp8"})
        yield partial(with_most_sequences, quantised, within, predict)


def _evaluated(candidates: Iterable[Candidate], meanwhile: Callable[[], object] = lambda: None) -> list[Prediction]:
    """What the candidates are found to be, without those that do not fit; each in a process of its own.

    `meanwhile` is done in this one.
    """
    tasks = list(candidates)
    with forked_pool(len(tasks)) as pool:
        futures = [pool.submit(_predicted, task) for task in tasks]
        meanwhile()
        found = [future.result() for future in futures]
    return [prediction for prediction in found if prediction]


def _predicted(candidate: Candidate) -> Prediction | None:
    """With everything that is said of it computed, in the process that does it."""
    found = candidate()
    if found is None:
        return None
    _ = found.prediction.verdict
    return found.prediction


def _helped_by_sequences(prediction: Prediction, room: int) -> bool:
    """Whether a replica with as many sequences as its KV pool holds could serve more, by the bounds."""
    bounds, limits = Bounds.of(prediction), prediction.deployment.limits
    now = limits.max_sequences // prediction.deployment.parallel.replicas
    few, many = (bounds.rate(max(1, count), limits.max_num_tokens) for count in (now, room))
    return many > few * (1 + PRECISION)


def _likely_layout(deployment: Deployment, ceiling: Ceiling, predict: Predict) -> Deployment | None:
    """The other layout that could serve most, by the bounds. Of a band of GPU utilisation only pipelines."""
    others = [one for one in variants(deployment) if one.parallel != deployment.parallel and fits(one)]
    if deployment.slo.gpu_utilisation and any(one.parallel.pp > 1 for one in others):
        others = [one for one in others if one.parallel.pp > 1]
    rates = {}
    for number, other in enumerate(others):
        prediction = predict(other)
        if in_time_alone(prediction):
            sequences = min(ceiling.of_replica(other), held(prediction))
            rates[number] = other.parallel.replicas * Bounds.of(prediction).rate(sequences, ceiling.tokens)
    return others[max(rates, key=lambda number: rates[number])] if rates else None


def _remedy(prediction: Prediction, found: Prediction) -> Remedy | None:
    """What the other settings give; None where that is nothing."""
    rate, before = found.capacity.highest, prediction.capacity.highest or 0.0
    settings = _settings(prediction.deployment, found.deployment)
    if not settings or not (found.meets_slo or (rate or 0.0) > before * (1 + PRECISION)):
        return None
    return Remedy(settings, rate, found.meets_slo, tuple(target.label for target in found.verdict.missed))


def _settings(before: Deployment, after: Deployment) -> str:
    """FIELD: VALUE of all that differs, a layout by its name."""
    found = []
    for section, names in SETTINGS:
        old, new = getattr(before, section), getattr(after, section)
        changed = [name for name in names if getattr(old, name) != getattr(new, name)]
        if section == "parallel" and changed:
            found.append(f"layout {layout_name(after)}")
        else:
            found += [f"{section}.{name}: {getattr(new, name)}" for name in changed]
    return ", ".join(found)
