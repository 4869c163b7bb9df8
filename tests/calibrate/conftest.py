from tests.engine.conftest import deploy

__all__ = ["deploy"]
