"""docs/reference/metrics.md and gpu-faults.md are what the tables say."""

from __future__ import annotations

import pytest

from docs import generate_gpu_faults, generate_metrics


@pytest.mark.parametrize("page", [generate_metrics, generate_gpu_faults])
def test_the_page_is_current(page):
    assert page.PAGE.read_text() == page.reference(), "run: make docs"
