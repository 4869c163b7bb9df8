import pytest

from toolkit.known_truth import KnownTruth, Settings


@pytest.fixture(scope="session")
def truth():
    with KnownTruth(Settings(ttft_ms=40, itl_ms=5)) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def protocol(request) -> str:
    return request.param
