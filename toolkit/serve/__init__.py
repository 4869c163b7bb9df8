"""Serving: start a group of ranks, prove it ready, watch it, drain it, and leave nothing behind."""

from toolkit.serve.control import Status, serve, status, stop
from toolkit.serve.launch import dry_run

__all__ = ["Status", "dry_run", "serve", "status", "stop"]
