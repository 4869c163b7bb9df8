"""`toolkit up` in the foreground: starts all parts, watches them, and restarts what ended, until told to stop."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway import admin, dynamo, programs, tracing
from toolkit.gateway.door import DoorState, config_digest, folder, only_one, write_door
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.node import Node
from toolkit.gateway.node_checks import check_nodes
from toolkit.gateway.places import Places
from toolkit.processes import StopRequests, free_port, stop_requests
from toolkit.serve import preflight
from toolkit.serve.janitor import RUN_ID, Janitor, ServerRun, sweep
from toolkit.serve.replicas import END_MARGIN_S
from toolkit.up.admission import Admission, FixedLimit
from toolkit.up.commands import Commands
from toolkit.up.door_checks import check_door
from toolkit.up.door_parts import DoorPart, door_parts, lists_a_model
from toolkit.up.events import Events
from toolkit.up.fallback import load_fallbacks
from toolkit.up.fleet import must_go_back
from toolkit.up.gpu_watch import GpuWatch
from toolkit.up.logs import Logs
from toolkit.up.nodes import Nodes
from toolkit.up.other_nodes import OtherNodes
from toolkit.up.replica import Replica
from toolkit.up.watching import follow, watch_parts

TICK_S = 0.1
LONGEST_SOCKET = 100


def up_here(deployment: Deployment) -> None:
    """Keep the deployment up until SIGTERM, SIGHUP or Ctrl-C, then drain.

    A ready line goes to stdout, events to stderr. Raises ToolkitError if a part cannot be started, or every replica
    was given up. No process is left then.
    """
    check_can_be_served(deployment)
    envoy = programs.require()
    with only_one(deployment), stop_requests() as stop:
        check_door(deployment)
        node = check_nodes(deployment)
        if deployment.here():
            preflight.check(deployment)
        fallbacks = load_fallbacks(deployment) if deployment.here() else ()
        with _run() as run:
            _keep_up(deployment, fallbacks, run, envoy, stop, node)


def _check_socket(path: Path) -> None:
    """Raise ToolkitError if the path is longer than the kernel allows for a Unix socket."""
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise ToolkitError(f"is too long for a socket's path: {path}", where="TMPDIR", hint="Set TMPDIR=/tmp.")


def _keep_up(
    deployment: Deployment,
    fallbacks: tuple[Deployment, ...],
    run: ServerRun,
    envoy: Path,
    stop: StopRequests,
    node: Node | None,
) -> None:
    worker_ports = tuple(free_port() for _ in deployment.here())
    address = node.address if node else None
    places = Places(run.tmp, folder(deployment), free_port(), free_port(), address, worker_ports)
    _check_socket(places.admin_socket)
    (run.tmp / "discovery").mkdir()
    write_endpoints(places, [])
    events = Events(folder(deployment))
    admission = (Admission if deployment.tuning.admission == "auto" else FixedLimit)(deployment, places, events)
    places.envoy_config.write_text(yaml.safe_dump(config(deployment, places), sort_keys=False), encoding="utf-8")
    programs.validate(envoy, places.envoy_config)
    environ = {**os.environ, **dynamo.environment(places.discovery, node), **tracing.dynamo_environment(deployment)}
    environ[RUN_ID] = run.id
    with Supervisor(deployment, places, environ, events) as supervisor:
        nodes = Nodes(deployment, node, events) if node else None
        supervisor.others = OtherNodes(supervisor.replicas, nodes)
        for replica in supervisor.replicas:
            replica.fallbacks = fallbacks
        supervisor.door = door_parts(deployment, places, envoy, environ, events)
        supervisor.watching = watch_parts(deployment, places, environ, events)
        supervisor.admission = admission
        supervisor.watch(stop)


@contextlib.contextmanager
def _run() -> Iterator[ServerRun]:
    """The context of one run: its processes end with us, in whatever way we end."""
    run = ServerRun.new()
    janitor = Janitor(run)
    try:
        yield run
    finally:
        sweep(run)
        janitor.dismiss()


class Supervisor:
    """All parts of one deployment."""

    def __init__(self, deployment: Deployment, places: Places, environ: Mapping[str, str], events: Events) -> None:
        self.deployment, self._places, self.events = deployment, places, events
        logs = places.logs
        ports = places.worker_ports or [0] * len(deployment.here())
        self.replicas = [
            Replica(replica, environ, logs, events, port)
            for replica, port in zip(deployment.here(), ports, strict=True)
        ]
        standby = deployment.recovery.standby
        for replica in self.replicas[len(self.replicas) - standby :] if standby else ():
            replica.reserve = True
        self.others = OtherNodes(self.replicas)
        self.door: tuple[DoorPart, ...] = ()
        self.gpus = GpuWatch(deployment, events)
        self.admission: Admission | FixedLimit | None = None
        self.watching: tuple[DoorPart, ...] = ()
        """Parts that may fail: no request needs them."""
        self._traffic: list[Traffic] = []
        self._phase, self._since = "loading", time.time()
        self._written: DoorState | None = None
        self._announced = False
        self._own, self._digest, self._takeovers = deployment, config_digest(deployment), 0
        self._logs = Logs(logs)
        self._commands = Commands(places.tmp / "control.sock", self)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.close()
        self.gpus.close()
        if self.admission:
            self.admission.end()
        self._end_all()
        self.others.close()
        self._enter("stopped")

    def watch(self, stop: StopRequests) -> None:
        """Run until told to stop. Raises ToolkitError when every replica has been given up."""
        self.gpus.start()
        self.events.note("toolkit up", "starts", action=f"{len(self.replicas)} replicas")
        while not stop.count:
            self._look()
            if self.replicas and all(replica.given_up for replica in self.replicas):
                causes = "; ".join(f"{one.group.name}: {one.group.message}" for one in self.replicas)
                raise ToolkitError(f"every replica was given up: {causes}", where=self.deployment.file)
            if failed := [part.part for part in self.door if part.part.phase == "failed"]:
                raise ToolkitError(f"the door's part {failed[0].name} was given up: {failed[0].message}")
            time.sleep(TICK_S)
        self._drain(stop)

    def serves(self, deployment: Deployment) -> None:
        """Note that all replicas now run this deployment."""
        self.deployment, self._digest = deployment, config_digest(self._own)
        self._takeovers += 1
        follow(self.watching, deployment, self._places, self.events)
        if self.admission:
            self.admission.serves(deployment)
        self._write()  # at once: whoever restarted it asks what runs

    def _look(self) -> None:
        """Look once at each part, then decide where the traffic goes."""
        for part in (*self.door, *self.watching):
            part.look()
        self._logs.look()
        self._heed_gpus()
        active = any(replica.ready and not replica.reserve for replica in self.replicas) or self.others.serve
        for replica in self.replicas:
            replica.look(take_over=not active)
        traffic = [replica.traffic for replica in self.replicas if replica.traffic]
        traffic += self.others.meet(traffic, self.moved)
        if traffic != self._traffic:
            self._traffic = traffic
            write_endpoints(self._places, self._traffic)
        if must_go_back(self):
            self._commands.go_back()
        self._enter(self._phase_now())
        if self._phase == "ready" and not self._announced:
            self._announced = True
            if self.admission:
                self.admission.begin()
            print(self._ready_lines(), flush=True)
        self._write()

    def _heed_gpus(self) -> None:
        for replica in self.replicas:
            replica.heed_lost(self.gpus.lost)
        while not self.gpus.doubts.empty():
            doubt = self.gpus.doubts.get()
            for replica in self.replicas:
                replica.heed_doubt(doubt)

    def _phase_now(self) -> str:
        ready = [replica for replica in self.replicas if replica.ready]
        if len(ready) < len(self.replicas) or not (ready or self.others.serve):
            serves = ready or (self.others.serve and self.deployment.gateway.has_door)
            return ("degraded" if serves else "down") if self._announced else "loading"
        if not (self._door_is_open() and self._openai_is_ready()):
            return "degraded" if self._announced else "loading"
        return "ready"

    @property
    def own(self) -> Deployment:
        """The YAML that it was started with."""
        return self._own

    @property
    def moved(self) -> bool:
        """Whether some replicas run another kind of engine than that YAML says, or the last one is on its way back."""
        kinds = {self.deployment.engine, *(replica.primary.engine for replica in self.replicas)}
        return kinds != {self._own.engine}

    @property
    def ending(self) -> bool:
        """Whether it was told to stop."""
        return self._phase in ("draining", "stopped")

    def _door_is_open(self) -> bool:
        return all(part.part.phase == "running" for part in self.door)

    def _openai_is_ready(self) -> bool:
        """Whether every worker has joined, and the front end knows one of them."""
        workers = [replica.worker for replica in self.replicas if not replica.reserve]
        if not all(worker.phase == "ready" for worker in workers):
            return False
        if self._phase == "ready" or not self.deployment.gateway.has_door:
            return True
        return lists_a_model(self._places.front_port)

    def _drain(self, stop: StopRequests) -> None:
        """Refuse new requests, wait at most drain_timeout_s for those in the door, then end the replicas."""
        limit = self.deployment.serving.drain_timeout_s
        self._enter("draining", f"at most {limit:g} s; again to stop at once")
        deadline = time.monotonic() + limit

        def may_wait() -> bool:
            return time.monotonic() < deadline and stop.count < 2

        self.others.leave(may_wait)
        admin.drain(self._places.admin_socket)
        while may_wait() and admin.active_requests(self._places.admin_socket):
            time.sleep(TICK_S)

    def _end_all(self) -> None:
        """End all parts. The replicas drain the requests that are left; the other parts end at once."""
        for replica in self.replicas:
            replica.stop()
        for part in self.watching:
            part.part.ask_to_end()  # Prometheus then writes its last samples
        deadline = time.monotonic() + self.deployment.serving.drain_timeout_s + END_MARGIN_S
        while any(replica.group.alive for replica in self.replicas) and time.monotonic() < deadline:
            time.sleep(TICK_S)
        for replica in self.replicas:
            replica.group.kill()
            replica.group.close()
            replica.worker.kill()
        for part in (*self.door, *self.watching):
            part.part.kill()

    def _enter(self, phase: str, action: str = "") -> None:
        if phase != self._phase:
            self._phase, self._since = phase, time.time()
            self.events.note("toolkit up", phase, action=action)
            self._write()

    def _write(self) -> None:
        parts = [part.part.state() for part in (*self.door, *self.watching)]
        for replica in self.replicas:
            parts += [replica.group.state(), replica.worker.state()]
        parts += self.others.parts()
        state = DoorState(
            os.getpid(),
            self._phase,
            self._since,
            self._url(),
            tuple(parts),
            str(self._commands.socket),
            self._digest,
            self.admission.state if self.admission else None,
            str(self.deployment.file.resolve()),
            self._takeovers,
            self.deployment.engine,
        )
        if state != self._written:
            write_door(self._own, state)
            self._written = state

    def _url(self) -> str:
        gateway = self.deployment.gateway
        if not gateway.has_door:
            return f"replicas for the doors of other nodes on {self._places.node}"
        return f"http{'s' if gateway.tls else ''}://{gateway.host}:{gateway.port}"

    def _ready_lines(self) -> str:
        url = self._url()
        if not self.deployment.gateway.has_door:
            return f"ready: {url}\nnext: {self.deployment.command('status')}"
        openai = f"OpenAI: {url}/v1, model {self.deployment.served_name}; "
        ask = self.deployment.command("ask")
        return f'ready: {url} ({openai}Triton: HTTP and gRPC)\nnext: {ask} "What is the capital of France?"'
