"""Makes each failure. Each function notes in its scene which process it hit, and when."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing

from toolkit.config.deployment import Deployment
from toolkit.drill import poison
from toolkit.drill.node import alive, part_of, send, supervisor, worker_of
from toolkit.drill.request import Outcome
from toolkit.drill.scene import Scene
from toolkit.gateway.door import door_url, folder
from toolkit.serve.janitor import FAILING
from toolkit.serve.replicas import END_MARGIN_S
from toolkit.up import control
from toolkit.up.fallback import MARKER

PROBE_EVERY_S = 0.25
BURST = 1.5
"""Simultaneous requests to each API, as a multiple of those that the door lets in."""
SHORT = 8
"""Tokens of an answer where many requests are sent at once."""
LEAVING, LEFT_LIMIT_S = 6, 30.0
STOPPED_S, RUNNING_S = 0.3, 0.3
FAILING_SHARE = 0.25
WINDOWS = (False, True) * 4
"""Which windows have poison. Four of eight can be chosen in 70 ways, enough for a test at 5 %."""
IN_A_WINDOW = 5
"""Fewest requests of the load in each window."""
CALM_S = 2.0
"""Pause between a window with poison and one without."""


def kill_rank(scene: Scene) -> None:
    """Kill the last rank of a replica."""
    replica = scene.busiest()
    servers = scene.node.servers(replica)
    rank = len(servers) - 1
    note = f"SIGKILL to rank {rank} of {part_of(replica)}, process {servers[rank].pid}"
    scene.kill([servers[rank].pid], note, _parts(replica))


def hang_rank(scene: Scene) -> None:
    """Suspend the last rank of a replica until the drill ends."""
    replica = scene.busiest()
    members, rank = scene.node.members(replica), len(scene.node.servers(replica)) - 1
    pids = [member.pid for member in members if (member.rank or 0) == rank and (member.server or member.model)]
    scene.begin(f"SIGSTOP to rank {rank} of {part_of(replica)}, {len(pids)} processes", _parts(replica))
    scene.stop(pids)


def kill_triton(scene: Scene) -> None:
    """Kill the Triton of rank 0."""
    replica = scene.busiest()
    server = scene.node.servers(replica)[0]
    scene.kill([server.pid], f"SIGKILL to Triton of {part_of(replica)}, process {server.pid}", _parts(replica))


def kill_stub(scene: Scene) -> None:
    """Kill a Python process of Triton."""
    replica = scene.busiest()
    if stub := scene.node.stub(replica):
        note = f"SIGKILL to the Python process of {stub.model} of {part_of(replica)}, process {stub.pid}"
        scene.kill([stub.pid], note, _parts(replica))


def kill_mpirun(scene: Scene) -> None:
    """Kill the mpirun of a replica."""
    replica = scene.busiest()
    if mpirun := scene.node.mpirun(replica):
        scene.kill([mpirun.pid], f"SIGKILL to mpirun of {part_of(replica)}, process {mpirun.pid}", _parts(replica))


def kill_worker(scene: Scene) -> None:
    """Kill the worker of a replica."""
    name = worker_of(scene.busiest())
    scene.kill([scene.node.pid(name)], f"SIGKILL to {name}, process {scene.node.pid(name)}", [name])


def kill_part(name: str) -> Callable[[Scene], None]:
    """Kill a part of the door, and ask until each API answers again."""

    def make(scene: Scene) -> None:
        scene.kill([scene.node.pid(name)], f"SIGKILL to the {name}, process {scene.node.pid(name)}", [name])
        _ask_until_answered(scene, scene.hit)

    return make


def _ask_until_answered(scene: Scene, after: float) -> None:
    """Probe each API that has not answered yet."""
    scene.extra["probed"], end = 1, time.monotonic() + scene.limit_s
    while (apis := scene.load.unanswered(after)) and time.monotonic() < end:
        scene.load.send(apis, 1)
        time.sleep(PROBE_EVERY_S)


def kill_supervisor(scene: Scene) -> None:
    """Kill `toolkit up`, count the processes that it leaves behind, and start it again."""
    pid, others = supervisor(scene.deployment), scene.node.everyone()
    scene.kill([pid], f"SIGKILL to toolkit up, process {pid}, which has {len(others)} others", [])
    scene.until(lambda: not alive(others), scene.deployment.serving.drain_timeout_s + END_MARGIN_S)
    scene.load.end()
    left = alive(others)
    scene.extra["orphans"] = len(left)
    send(signal.SIGKILL, left)
    scene.up_again()


def slow_replica(scene: Scene) -> None:
    """Suspend a replica and resume it, in short turns."""
    replica = scene.busiest()
    pids = [member.pid for member in scene.node.members(replica) if member.server or member.model]
    note = f"{part_of(replica)} stopped for {STOPPED_S:g} s of every {STOPPED_S + RUNNING_S:g} s, {len(pids)} processes"
    scene.begin(note)
    end = time.monotonic() + 2 * scene.seconds
    while time.monotonic() < end and alive(pids) == set(pids):  # once one has ended, its number may be another's
        scene.stop(pids)
        time.sleep(STOPPED_S)
        send(signal.SIGCONT, pids)
        time.sleep(RUNNING_S)


def fail_share(scene: Scene) -> None:
    """Let a share of a replica's requests fail, as where a step of the engine fails."""
    replica = scene.busiest()
    file = scene.node.run(replica).tmp / FAILING
    scene.afterwards.append(lambda: file.unlink(missing_ok=True))
    scene.begin(f"{FAILING_SHARE:.0%} of the requests to {part_of(replica)} fail in the engine")
    file.write_text(str(FAILING_SHARE), encoding="utf-8")
    scene.load.send(2 * scene.clients.apis, SHORT)  # the load alone may be too thin for a share
    time.sleep(2 * scene.seconds)
    file.unlink()


def send_poison(scene: Scene) -> None:
    """Send wrong requests in every second of eight windows, so that other load affects both kinds alike."""
    url = door_url(scene.deployment, "http") or ""
    wrong = list(poison.poisons(scene.deployment, triton=len(scene.clients.apis) > 1))
    scene.begin(f"{len(wrong)} kinds of wrong requests, again and again")
    window_s = max(scene.seconds, IN_A_WINDOW / scene.load.rate)
    answers: list[poison.Answer] = []
    windows: list[tuple[bool, float, float]] = []
    for poisoned in WINDOWS:
        start, ended = time.time(), threading.Event()
        if poisoned:
            timer = threading.Timer(window_s, ended.set)
            timer.start()
            answers += poison.send_again_and_again(url, wrong, ended)
        else:
            time.sleep(window_s)
        windows.append((poisoned, start, time.time()))
        time.sleep(CALM_S)
    whole = [request for request in scene.load.end() if request.outcome is Outcome.WHOLE]
    bad = [answer for answer in answers if answer.status is None or not 400 <= answer.status < 500]
    scene.note = f"{len(answers)} wrong requests of {len(wrong)} kinds" + "".join(
        f"; {answer.name} to {answer.path} got {answer.status or 'no answer'}" for answer in dict.fromkeys(bad)
    )
    scene.extra["not_4xx"] = len(bad)
    for name in ("e2e", "ttft"):
        times = [
            (label, [getattr(request, f"{name}_s") for request in whole if start <= request.sent < end])
            for label, start, end in windows
        ]
        scene.extra[f"{name}_p99_ratio"], scene.extra[f"{name}_chance"] = poison.p99_ratio(times)


def full_queue(scene: Scene) -> None:
    """Send more requests at once than the door takes."""
    each = round(BURST * scene.deployment.most_requests)
    apis = each * scene.clients.apis
    scene.begin(f"{len(apis)} requests at once")
    scene.load.send(apis, SHORT)


def all_down(scene: Scene) -> None:
    """Kill all replicas. Probes show when each API answers again."""
    replicas = scene.node.replicas
    pids = [server.pid for replica in replicas for server in scene.node.servers(replica)]
    scene.kill(pids, f"SIGKILL to all ranks of {len(replicas)} replicas", [p for r in replicas for p in _parts(r)])
    time.sleep(CALM_S)
    _ask_until_answered(scene, scene.hit + CALM_S)


def lose_gpu(scene: Scene) -> None:
    """Mark the last rank's GPU as lost, and kill that rank. Afterwards the deployment returns to all GPUs."""
    [replica, *_] = scene.node.replicas
    servers = scene.node.servers(replica)
    marker, rank = folder(scene.deployment) / MARKER, len(servers) - 1

    def return_to_all() -> None:
        marker.unlink(missing_ok=True)
        control.restart(scene.deployment, rolling=False, new=None, hear=lambda line: None)

    scene.afterwards.append(return_to_all)
    marker.write_text(str(rank), encoding="utf-8")
    scene.kill([servers[rank].pid], f"GPU {rank} is lost, and rank {rank} of {part_of(replica)}", _parts(replica))
    time.sleep(CALM_S)
    _ask_until_answered(scene, scene.hit + CALM_S)
    starts = [event for event in scene.node.events(scene.hit) if "is lost" in event.get("cause", "")]
    scene.note += "".join(f"; {event.get('action', '')}" for event in starts)
    scene.extra["fallbacks"] = sum("starts on" in event.get("action", "") for event in starts)


def drain(scene: Scene) -> None:
    """Send SIGTERM to one replica, as an operator or a scheduler does."""
    replica = scene.busiest()
    name = part_of(replica)
    pid = scene.node.pid(name)
    scene.begin(f"SIGTERM to {name}, process {pid}", _parts(replica))
    send(signal.SIGTERM, [pid])


def rolling_restart(scene: Scene) -> None:
    """Restart all replicas in turn."""
    scene.begin("toolkit restart --rolling")
    control.restart(scene.deployment, rolling=True, new=None, hear=lambda line: None)


def stop_all(scene: Scene) -> None:
    """Stop the whole deployment under load, and start it again."""
    scene.begin("toolkit down")
    control.down(scene.deployment)
    scene.load.end()
    scene.up_again()


def clients_leave(scene: Scene) -> None:
    """Begin streams whose clients close the connection after the first token."""

    def idle() -> bool:
        return not any(map(scene.node.running, scene.node.replicas))

    threads = []
    scene.until(idle)  # requests of the previous drill may still run
    tokens = scene.deployment.limits.max_seq_len // 2
    for number in range(LEAVING):
        api = scene.clients.apis[number % len(scene.clients.apis)]
        threads.append(threading.Thread(target=_leave, args=(scene, api, number, tokens), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    scene.begin(f"{len(threads)} clients left after the first of {tokens} tokens")
    scene.extra["running_s"] = time.time() - scene.hit if scene.until(idle, LEFT_LIMIT_S) else None


def _leave(scene: Scene, api: str, number: int, tokens: int) -> None:
    request = scene.clients.request(api, number % 2, tokens)
    with closing(scene.clients.each[api].generate_stream(request, scene.limit_s)) as stream:
        next(stream, None)


def _parts(replica: Deployment) -> Iterable[str]:
    return (part_of(replica), worker_of(replica))
