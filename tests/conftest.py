from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """The Hugging Face directory of a small model that recites fixtures/tiny_llama.txt."""
    return FIXTURES / "tiny-llama"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """The Hugging Face directory of SmolLM2-135M-Instruct, made once a session (7 s, 290 MB)."""
    from toolkit.samples import smollm2

    directory = tmp_path_factory.mktemp("models") / "smollm2"
    smollm2.write(directory)
    return directory
