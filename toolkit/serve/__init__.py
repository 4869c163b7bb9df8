"""Serving: start a group of ranks, prove it ready, watch it, drain it, and leave nothing behind.

The functions are imported at their first use: the exporter reads only state files, and takes 18 MB less memory without
the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.serve.control import Overview, Status, overview, serve, status, stop
    from toolkit.serve.launch import dry_run

__all__ = ["Overview", "Status", "dry_run", "overview", "serve", "status", "stop"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'launch' if name == 'dry_run' else 'control'}"), name)
