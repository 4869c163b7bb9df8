"""docs/reference/metrics.md is what the tables of metrics say."""

from __future__ import annotations

from docs.generate_metrics import PAGE, reference


def test_the_page_of_metrics_is_current():
    assert PAGE.read_text() == reference(), "run: make docs"
