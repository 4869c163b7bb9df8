"""Code of the models (triton_repo/shared) that workers use too. The models run where the toolkit is not installed."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from toolkit.files import distribution


@functools.cache
def shared(name: str) -> Any:
    """The module of this name."""
    file = distribution.folder("triton_repo") / "shared" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"toolkit_{name}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
