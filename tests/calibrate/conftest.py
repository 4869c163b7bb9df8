import pytest

from tests.engine.conftest import deploy as deploy_engine
from tests.ports import free_ports

__all__ = ["deploy_engine"]


@pytest.fixture
def deploy(deploy_engine):
    """deploy(model, tp, pp, **sections of the YAML) -> Deployment, ready to be served on free ports."""
    from toolkit.repository import generate

    def make(*arguments, **sections):
        ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(), strict=True))
        deployment = deploy_engine(*arguments, **{"serving": ports, **sections})
        generate(deployment)
        return deployment

    return make
