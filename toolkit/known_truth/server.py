"""Runs the server from start to end, in one process and one thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.known_truth.answer import ServerState
from toolkit.known_truth.settings import Settings

GIVE_UP_S = 2.0
"""How long to wait until all answers are cancelled."""

Ready = Callable[[dict[str, str]], None]


def serve(settings: Settings, ready: Ready, parent: int | None = None) -> dict[str, Any]:
    """Serve until Ctrl-C, SIGTERM, or until the pipe `parent` is closed. Returns the summary.

    Calls `ready` with the URLs {"http": ..., "grpc": ...}, without gRPC where settings.grpc_port is None. Raises
    ToolkitError if a port is taken or the record file cannot be written.
    """
    if settings.grpc_port is not None:
        distribution.require("loadtest", "grpclib")
    return asyncio.run(_serve(settings, ready, parent))


async def _serve(settings: Settings, ready: Ready, parent: int | None) -> dict[str, Any]:
    from toolkit.known_truth.http_server import start_http

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.ExitStack() as files:
        state = ServerState(settings)
        try:
            if settings.record is not None:
                state.file = files.enter_context(Path(settings.record).open("a", encoding="utf-8", buffering=1))
        except OSError as error:
            raise ToolkitError(f"cannot be written: {error.strerror}", where=settings.record) from None
        try:
            http, connections = await start_http(state)
        except OSError as error:
            where = f"--http-port {settings.http_port}"
            raise ToolkitError(f"cannot listen on {settings.host}: {error.strerror}", where=where) from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        urls, grpc = {"http": f"http://{host}:{http.sockets[0].getsockname()[1]}"}, None
        if settings.grpc_port is not None:
            from toolkit.known_truth.grpc_server import start_grpc

            grpc, grpc_port = await start_grpc(state)
            urls["grpc"] = f"grpc://{host}:{grpc_port}"
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if parent is not None:
            loop.add_reader(parent, lambda: None if os.read(parent, 4096) else stop.set())
        # Or each collection would scan all imported modules while tokens are due.
        gc.collect()
        gc.freeze()
        cpu, begun = time.process_time(), time.perf_counter()
        ready(urls)
        await stop.wait()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
        http.close()
        for connection in list(connections):
            connection.abort()
        if grpc:
            grpc.close()
        while state.running and time.perf_counter() < begun + wall + GIVE_UP_S:  # until all answers are recorded
            await asyncio.sleep(0.005)
    return summary(state, cpu, wall)


def summary(state: ServerState, cpu_s: float, wall_s: float) -> dict[str, Any]:
    """The totals of a server that has ended."""
    return {
        "requests": state.begun,
        "tokens": state.tokens,
        "seconds": round(wall_s, 3),
        "cpu_cores": round(cpu_s / wall_s, 4) if wall_s else 0.0,
        "late_p50_ms": state.late_ms(50),
        "late_p99_ms": state.late_ms(99),
    }
