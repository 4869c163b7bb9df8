"""What was predicted of a load test, beside what it measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.files.json_file import finite
from toolkit.slo.metrics import Finite


@dataclass(frozen=True)
class Beside:
    """One number, predicted and measured."""

    label: str
    unit: str
    predicted: Finite | None
    measured: Finite | None

    @property
    def difference(self) -> float | None:
        """Of the measured value, as a share of the predicted one."""
        if not self.predicted or self.measured is None or math.isinf(self.predicted) or math.isinf(self.measured):
            return None
        return self.measured / self.predicted - 1


@dataclass(frozen=True)
class Predicted:
    """What was predicted for a load test, next to what it measured."""

    rows: tuple[Beside, ...]
    estimator: str
    """Where the step times are from, in words."""

    def as_dict(self) -> dict[str, Any]:
        return {"estimator": self.estimator, "rows": [finite(asdict(row)) for row in self.rows]}
