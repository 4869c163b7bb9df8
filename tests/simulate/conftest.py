from tests.engine.conftest import deploy, make_llama

__all__ = ["deploy", "make_llama"]
