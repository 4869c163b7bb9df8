"""The values of one moment."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.monitor.metrics import METRICS
from toolkit.slo.server_metrics import parse


class Page:
    """Values by family and labels."""

    def __init__(self) -> None:
        self.values: dict[str, dict[tuple[str, ...], float]] = {}

    def set(self, name: str, value: float | None, **labels: object) -> None:
        """Set a value of a family of METRICS. None, an unknown value, is left out."""
        if value is not None:
            family = METRICS[name]
            key = tuple(str(labels.pop(label)) for label in family.labels)
            assert not labels, f"{name} has no labels {', '.join(labels)}"
            self.values.setdefault(name, {})[key] = float(value)

    def take(self, other: Page) -> None:
        """Take over the families of another page, which this one must not have."""
        self.values.update(other.values)

    def get(self, name: str, **labels: object) -> float | None:
        """A value, if it is known."""
        key = tuple(str(labels[label]) for label in METRICS[name].labels)
        return self.values.get(name, {}).get(key)

    def of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """(labels, value) of each series of a family."""
        for key, value in self.values.get(name, {}).items():
            yield dict(zip(METRICS[name].labels, key, strict=True)), value

    @classmethod
    def of_text(cls, text: str) -> Page:
        """A page from the text of an exporter. Other families are left out."""
        page = cls()
        for value in parse(text):
            family = METRICS.get(value.name)
            if family and set(family.labels) == set(value.labels):
                page.set(value.name, value.value, **value.labels)
        return page

    def as_data(self) -> dict[str, list[dict[str, object]]]:
        """For JSON: by family, a list of {labels, value}."""
        return {
            name: [{"labels": labels, "value": value} for labels, value in self.of(name)]
            for name in METRICS
            if name in self.values
        }
