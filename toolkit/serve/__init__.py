"""Serving: start a group of ranks, prove it ready, watch it, drain it, and leave nothing behind."""

from toolkit.serve.control import Overview, Status, overview, serve, status, stop
from toolkit.serve.launch import dry_run

__all__ = ["Overview", "Status", "dry_run", "overview", "serve", "status", "stop"]
