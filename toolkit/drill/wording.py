"""The results of drills in words: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.drill.promise import Judged, Verdict, worst
from toolkit.drill.request import Outcome
from toolkit.drill.run import Drill
from toolkit.drill.trial import METRICS, Trial
from toolkit.reports import wording

SEEN = ("detect_s", "recover_s", "served_s", "lost", "cut_openai", "cut_triton", "wrong")
"""Metrics that are shown for each drill, promised or not."""


def verdict_of(drills: Sequence[Drill]) -> Verdict:
    """The verdict on all drills."""
    return worst([drill.verdict for drill in drills])


def line(drill: Drill) -> str:
    """One drill as one line of text."""
    words = f"{drill.failure.name:<16} {drill.verdict:<9}"
    if drill.trial is None:
        return f"{words} {drill.why}"
    kept = [judged for judged in drill.judged if judged.verdict is not Verdict.PASS]
    broken = "; ".join(f"{judged.label}: {measured(judged)}, promised {limit(judged)}" for judged in kept)
    return f"{words} {seen(drill.trial)}{f' | {broken}' if broken else ''}"


def seen(trial: Trial) -> str:
    """The main numbers of a trial in one line."""
    counts, metric = trial.counts(), {name: METRICS[name].of(trial) for name in SEEN}
    parts = [
        *([f"detected {metric['detect_s']:.1f} s"] if metric["detect_s"] is not None else []),
        *([f"recovered {metric['recover_s']:.1f} s"] if metric["recover_s"] is not None else []),
        *([f"served again {metric['served_s']:.1f} s"] if metric["served_s"] is not None else []),
        f"{len(trial.requests)} requests",
        f"{counts[Outcome.LOST]} lost",
        f"{counts[Outcome.REFUSED]} refused",
        f"{metric['cut_openai']:.0f} + {metric['cut_triton']:.0f} cut",
        f"{trial.migrated if trial.migrated is not None else '?'} migrated",
        f"{len(trial.tries)} retried",
        f"{metric['wrong']:.0f} wrong",
        *([f"capacity {trial.capacity:.0%}"] if trial.capacity is not None else []),
    ]
    return ", ".join(parts)


def measured(judged: Judged) -> str:
    """The number with its unit."""
    return "not measured" if judged.measured is None else _quantity(judged.measured, judged.unit)


def limit(judged: Judged) -> str:
    """The limit as a condition."""
    return f"{judged.sign} {_quantity(judged.limit, judged.unit)}"


def _quantity(value: float, unit: str) -> str:
    if not unit:
        return f"{value:.0f}"
    return f"{wording.number(value)} {unit}"
