import pytest

from .probe import RunningProbe, running_probe


@pytest.fixture(scope="session")
def probe():
    """A server of quick answers: first event after 20 ms, then one each 5 ms."""
    with running_probe(ttft_s=0.02, itl_s=0.005) as running:
        yield running


@pytest.fixture(scope="session")
def paced_probe():
    """A server at the pace of a large model: first event after 200 ms, then one each 20 ms."""
    with running_probe(ttft_s=0.2, itl_s=0.02) as running:
        yield running


@pytest.fixture(params=["http", "grpc", "openai"])
def protocol(request) -> str:
    return request.param


@pytest.fixture
def client(probe: RunningProbe, protocol: str):
    from toolkit.client import connect

    with connect(probe.url(protocol)) as connected:
        yield connected
