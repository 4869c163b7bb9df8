"""What was predicted for a load test, next to what it measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.slo.sample import Finite


@dataclass(frozen=True)
class PredictedMetric:
    """One number, predicted and measured."""

    label: str
    unit: str
    predicted: Finite | None
    measured: Finite | None

    @property
    def difference(self) -> float | None:
        """How far the measured value is from the predicted one, as a share of that one: 0.1 is 10 % more."""
        if not self.predicted or self.measured is None or math.isinf(self.predicted) or math.isinf(self.measured):
            return None
        return self.measured / self.predicted - 1


@dataclass(frozen=True)
class Predicted:
    """What was predicted for a load test, next to what it measured."""

    rows: tuple[PredictedMetric, ...]
    estimator: str
    """Where the step times come from, in words."""
