"""The deployment that is drilled: its state as `toolkit up` reports it, and its processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.drill.load import not_up
from toolkit.errors import ToolkitError
from toolkit.gateway.door import DoorState, PartState, folder, read_door, up_pid
from toolkit.gateway.places import LOOPBACK
from toolkit.monitor.read_page import read_page
from toolkit.serve.health import Probe
from toolkit.serve.janitor import Member, ServerRun, members
from toolkit.serve.state import read_state
from toolkit.up.events import NAME as EVENTS

LOOK_S = 0.05
MPIRUN = ("mpirun", "prterun", "orterun")
ENGINE_MODEL = "tensorrt_llm"
METRICS_TIMEOUT_S = 2.0
_MIGRATIONS = re.compile(r"^dynamo_frontend_model_migration_total\{.*\} (\S+)$", re.MULTILINE)
Event = dict[str, Any]


class Node:
    """One deployment that is up."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.replicas = deployment, deployment.per_replica()
        self._access = folder(deployment) / "access.jsonl"

    def state(self) -> DoorState:
        """The state that toolkit up last wrote. Raises ToolkitError when it is not up."""
        state = read_door(self.deployment)
        if state is None:
            raise not_up(self.deployment)
        return state

    def part(self, name: str) -> PartState:
        return next(part for part in self.state().parts if part.name == name)

    def pid(self, name: str) -> int:
        """The process of a part. Raises ToolkitError if it has none now."""
        if (pid := self.part(name).pid) is None:
            raise ToolkitError(f"{name} has no process now", where=self.deployment.file, hint=self._see())
        return pid

    def _see(self) -> str:
        return f"See: {self.deployment.command('status')}"

    def wait_ready(self, timeout_s: float) -> None:
        """Return once all parts are ready. Raises ToolkitError after `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        while (state := self.state()).phase != "ready":
            if time.monotonic() > end:
                what = f"is {state.phase} and was not ready within {timeout_s:g} s"
                raise ToolkitError(what, where=self.deployment.file, hint=self._see())
            time.sleep(LOOK_S)

    def running(self, replica: Deployment) -> int:
        """Requests in a replica's engine now; 0 if it does not say."""
        return Probe(replica).running() or 0

    def members(self, replica: Deployment) -> list[Member]:
        """The processes of a replica's group."""
        state = read_state(replica)
        return members(state.run) if state else []

    def run(self, replica: Deployment) -> ServerRun:
        """The present run of a replica's group. Raises ToolkitError where there is none."""
        if (state := read_state(replica)) is None:
            raise ToolkitError(f"{part_of(replica)} does not serve now", where=self.deployment.file)
        return state.run

    def servers(self, replica: Deployment) -> list[Member]:
        """The Triton of each rank, rank 0 first. Raises ToolkitError where there is none."""
        servers = [member for member in self.members(replica) if member.server]
        if not servers:
            raise ToolkitError(f"{part_of(replica)} has no tritonserver now", where=self.deployment.file)
        return sorted(servers, key=lambda member: member.rank or 0)

    def mpirun(self, replica: Deployment) -> Member | None:
        """The mpirun of a replica; None where one process serves alone."""
        everyone = self.members(replica)
        names = [member for member in everyone if Path(member.command[0]).name.startswith(MPIRUN)]
        return next((member for member in names if member.rank is None), None)

    def stub(self, replica: Deployment) -> Member | None:
        """A Python process of rank 0's Triton; one of another model than the engine's, if there is one."""
        stubs = [member for member in self.members(replica) if member.model and not member.rank]
        return min(stubs, key=lambda member: (member.model == ENGINE_MODEL, member.model), default=None)

    def everyone(self) -> set[int]:
        """All processes of the deployment now, except `toolkit up` itself."""
        pids = {part.pid for part in self.state().parts if part.pid}
        return pids | {member.pid for replica in self.replicas for member in self.members(replica)}

    def events(self, since: float) -> list[Event]:
        """The events that `toolkit up` wrote since this moment."""
        return [event for event in _lines(folder(self.deployment) / EVENTS) if event.get("time", 0) >= since]

    def access_mark(self) -> int:
        """The present size of Envoy's access log, in bytes."""
        try:
            return self._access.stat().st_size
        except OSError:
            return 0

    def accesses(self, mark: int) -> list[Event]:
        """The entries of Envoy's access log after a mark."""
        return list(_lines(self._access, mark))

    def migrations(self) -> int | None:
        """Streams that the front end continued on another replica, since it started; None if it does not say."""
        try:
            text = read_page(f"http://{LOOPBACK}:{self._front_port()}/metrics", METRICS_TIMEOUT_S)
        except (OSError, http.client.HTTPException):
            return None
        return int(sum(map(float, _MIGRATIONS.findall(text))))

    def _front_port(self) -> int:
        with (folder(self.deployment) / "envoy.yaml").open(encoding="utf-8") as stream:
            clusters = yaml.safe_load(stream)["static_resources"]["clusters"]
        front = next(cluster for cluster in clusters if cluster["name"] == "front")
        endpoint = front["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        return int(endpoint["address"]["socket_address"]["port_value"])


def part_of(replica: Deployment) -> str:
    """The name that toolkit up gives to a replica."""
    return f"replica {replica.replica or 0}"


def worker_of(replica: Deployment) -> str:
    """The name that toolkit up gives to the worker of a replica."""
    return f"worker {replica.replica or 0}"


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def alive(pids: Iterable[int]) -> set[int]:
    """The processes that run; a zombie does not."""
    return {pid for pid in pids if _state(pid) not in ("", "Z", "X")}


def supervisor(deployment: Deployment) -> int:
    """The process of toolkit up. Raises ToolkitError when it is not up."""
    if (pid := up_pid(deployment)) is None:
        raise not_up(deployment)
    return pid


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _lines(file: Path, mark: int = 0) -> list[Event]:
    """The JSON objects of a file of lines, without an incomplete last line."""
    entries = []
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(mark)
        for line in stream:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    entries.append(entry)
    return entries
