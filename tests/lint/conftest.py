from pathlib import Path

import pytest

from tests.lint.repositories import FLAGSHIP, write_repository


@pytest.fixture
def repository(tmp_path, tiny_llama) -> Path:
    """The flagship's, with its engine beside it."""
    return write_repository(tmp_path, tiny_llama, FLAGSHIP)
