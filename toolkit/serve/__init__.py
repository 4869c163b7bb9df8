"""Serving: start a group of ranks, prove it ready, watch it, drain it, and leave nothing behind."""

from toolkit.serve.command import dry_run
from toolkit.serve.control import Overview, Status, overview, serve, status, stop

__all__ = ["Overview", "Status", "dry_run", "overview", "serve", "status", "stop"]
