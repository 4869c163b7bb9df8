"""Serving: start a group of ranks, prove it ready, watch it, drain it, and leave nothing behind."""

from toolkit.serve.command import dry_run
from toolkit.serve.control import Status, serve, status, stop

__all__ = ["Status", "dry_run", "serve", "status", "stop"]
