from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """The Hugging Face directory of a small model that recites fixtures/tiny_llama.txt."""
    return FIXTURES / "tiny-llama"
