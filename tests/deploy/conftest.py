from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.folders import copied


@pytest.fixture
def config(tmp_path) -> Path:
    """A rehearsal's YAML that a test may change."""
    return copied("pair", tmp_path)
