from toolkit.serve.control import Status, serve, status, stop

__all__ = ["Status", "serve", "status", "stop"]
