"""The failures that toolkit drill can make, each with what is promised about it. The table is at the end.

Not here: errors at a share of all requests. Neither Triton nor the engine can be made to give them for real.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

from toolkit.config.deployment import Deployment
from toolkit.drill import poison
from toolkit.drill.node import alive, part_of, send, supervisor, worker_of
from toolkit.drill.promise import (
    DOOR_RESTART_S,
    DRAINED,
    ERROR_WITHIN_S,
    FIRST_ANSWER_S,
    GROUP_FAILS,
    GROUP_HANGS,
    LEFT_S,
    NOTHING_LOST,
    OTHERS_P99,
    RECOVERED,
    REFUSAL_MS,
    Promise,
    none,
)
from toolkit.drill.request import Outcome, Request
from toolkit.drill.scene import Scene
from toolkit.gateway.door import door_url
from toolkit.gateway.envoy import max_requests
from toolkit.serve.health import Probe
from toolkit.up import control

ORPHANS_S = 30.0
PROBE_EVERY_S = 0.25
BURST = 1.5
"""Requests at once to each API, compared with those that the door lets in."""
SHORT = 8
"""Tokens of an answer where many requests are sent at once."""
LEAVING = 6
STOPPED_S, RUNNING_S = 0.3, 0.3
CALM_S = 2.0
"""Between a window with poison and one without."""


@dataclass(frozen=True)
class Failure:
    """One entry of the table."""

    name: str
    meaning: str
    make: Callable[[Scene], None]
    promises: tuple[Promise, ...]
    skipped: Callable[[Deployment], str | None] = lambda deployment: None
    """Why it cannot happen to a deployment."""
    under_load: bool = True
    only_before: bool = False
    """Only the requests count that were sent before it."""


def kill_rank(scene: Scene) -> None:
    replica = scene.node.busiest()
    servers = scene.node.servers(replica)
    rank = len(servers) - 1
    note = f"SIGKILL to rank {rank} of {part_of(replica)}, process {servers[rank].pid}"
    scene.kill([servers[rank].pid], note, _parts(replica))


def hang_rank(scene: Scene) -> None:
    replica = scene.node.busiest()
    members, rank = scene.node.members(replica), len(scene.node.servers(replica)) - 1
    pids = [member.pid for member in members if (member.rank or 0) == rank and (member.server or member.model)]
    scene.begin(f"SIGSTOP to rank {rank} of {part_of(replica)}, {len(pids)} processes", _parts(replica))
    send(signal.SIGSTOP, pids)


def kill_triton(scene: Scene) -> None:
    replica = scene.node.busiest()
    server = scene.node.servers(replica)[0]
    scene.kill([server.pid], f"SIGKILL to Triton of {part_of(replica)}, process {server.pid}", _parts(replica))


def kill_stub(scene: Scene) -> None:
    replica = scene.node.busiest()
    if stub := scene.node.stub(replica):
        note = f"SIGKILL to the Python process of {stub.model} of {part_of(replica)}, process {stub.pid}"
        scene.kill([stub.pid], note, _parts(replica))


def kill_mpirun(scene: Scene) -> None:
    replica = scene.node.busiest()
    if mpirun := scene.node.mpirun(replica):
        scene.kill([mpirun.pid], f"SIGKILL to mpirun of {part_of(replica)}, process {mpirun.pid}", _parts(replica))


def kill_worker(scene: Scene) -> None:
    name = worker_of(scene.node.busiest())
    scene.kill([scene.node.pid(name)], f"SIGKILL to {name}, process {scene.node.pid(name)}", [name])


def kill_part(name: str) -> Callable[[Scene], None]:
    """Kill a part of the door."""

    def make(scene: Scene) -> None:
        scene.kill([scene.node.pid(name)], f"SIGKILL to the {name}, process {scene.node.pid(name)}", [name])

    return make


def kill_supervisor(scene: Scene) -> None:
    pid, others = supervisor(scene.deployment), scene.node.everyone()
    scene.kill([pid], f"SIGKILL to toolkit up, process {pid}, which has {len(others)} others", [])
    scene.until(lambda: not alive(others), ORPHANS_S)
    scene.load.end()
    left = alive(others)
    scene.extra["orphans"] = len(left)
    send(signal.SIGKILL, left)
    scene.up_again()


def slow_replica(scene: Scene) -> None:
    replica = scene.node.busiest()
    pids = [member.pid for member in scene.node.members(replica) if member.server or member.model]
    note = f"{part_of(replica)} stopped for {STOPPED_S:g} s of every {STOPPED_S + RUNNING_S:g} s, {len(pids)} processes"
    scene.begin(note)
    end = time.monotonic() + 2 * scene.seconds
    while time.monotonic() < end and alive(pids):
        send(signal.SIGSTOP, pids)
        time.sleep(STOPPED_S)
        send(signal.SIGCONT, pids)
        time.sleep(RUNNING_S)


def send_poison(scene: Scene) -> None:
    """Twice without poison and with it, in turns, so that what else the machine does concerns both alike."""
    url = door_url(scene.deployment, "http") or ""
    wrong = list(poison.poisons(scene.deployment, triton=len(scene.clients.apis) > 1))
    scene.begin(f"{len(wrong)} kinds of wrong requests, again and again")
    answers: list[poison.Answer] = []
    windows: list[tuple[float, float, bool]] = []
    for poisoned in (False, True, False, True):
        start, ended = time.time(), threading.Event()
        if poisoned:
            timer = threading.Timer(2 * scene.seconds, ended.set)
            timer.start()
            answers += poison.send_again_and_again(url, wrong, ended)
        else:
            time.sleep(2 * scene.seconds)
        windows.append((start, time.time(), poisoned))
        time.sleep(CALM_S)
    requests = [r for r in scene.load.end() if any(start <= r.sent < end for start, end, _ in windows)]

    def label(request: Request) -> bool:
        return any(start <= request.sent < end and poisoned for start, end, poisoned in windows)

    bad = [answer for answer in answers if answer.status is None or not 400 <= answer.status < 500]
    scene.note = f"{len(answers)} wrong requests of {len(wrong)} kinds" + "".join(
        f"; {answer.name} to {answer.path} got {answer.status or 'no answer'}" for answer in dict.fromkeys(bad)
    )
    scene.extra["not_4xx"] = len(bad)
    whole = [request for request in requests if request.outcome is Outcome.WHOLE]
    for name, time_of in (("e2e", lambda r: r.e2e_s), ("ttft", lambda r: r.ttft_s)):
        scene.extra[f"{name}_p99_ratio"], scene.extra[f"{name}_chance"] = poison.p99_ratio(whole, label, time_of)


def full_queue(scene: Scene) -> None:
    count = round(BURST * max_requests(scene.deployment)) * len(scene.clients.apis)
    scene.begin(f"{count} requests at once")
    scene.load.burst(count, SHORT)


def all_down(scene: Scene) -> None:
    """With a request to each API now and then, to see when they answer."""
    replicas = scene.node.replicas
    pids = [server.pid for replica in replicas for server in scene.node.servers(replica)]
    scene.kill(pids, f"SIGKILL to all ranks of {len(replicas)} replicas", [p for r in replicas for p in _parts(r)])
    later = scene.hit + CALM_S

    def answered() -> bool:
        return all(scene.load.answered(later, [api]) for api in scene.clients.apis)

    end = time.monotonic() + scene.limit_s
    time.sleep(CALM_S)
    while not answered() and time.monotonic() < end:
        scene.load.burst(len(scene.clients.apis), 1)
        time.sleep(PROBE_EVERY_S)


def drain(scene: Scene) -> None:
    replica = scene.node.busiest()
    name = part_of(replica)
    pid = scene.node.pid(name)
    scene.begin(f"SIGTERM to {name}, process {pid}", _parts(replica))
    send(signal.SIGTERM, [pid])


def rolling_restart(scene: Scene) -> None:
    scene.begin("toolkit restart --rolling")
    control.restart(scene.deployment, rolling=True, new=None, hear=lambda line: None)


def stop_all(scene: Scene) -> None:
    scene.begin("toolkit down")
    control.down(scene.deployment)
    scene.load.end()
    scene.up_again()


def clients_leave(scene: Scene) -> None:
    """Streams whose clients close the connection after the first token."""
    threads = []
    tokens = scene.deployment.limits.max_seq_len // 2
    for number in range(LEAVING):
        api = scene.clients.apis[number % len(scene.clients.apis)]
        threads.append(threading.Thread(target=_leave, args=(scene, api, number, tokens), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    scene.begin(f"{len(threads)} clients left after the first of {tokens} tokens")
    idle = scene.until(lambda: not any(Probe(replica).running() for replica in scene.node.replicas), 10 * LEFT_S)
    scene.extra["running_s"] = time.time() - scene.hit if idle else None


def _leave(scene: Scene, api: str, number: int, tokens: int) -> None:
    request = scene.clients.request(api, number % 2, tokens)
    with closing(scene.clients.each[api].generate_stream(request, scene.limit_s)) as stream:
        next(stream, None)


def _parts(replica: Deployment) -> Iterable[str]:
    return (part_of(replica), worker_of(replica))


def _one_process(deployment: Deployment) -> str | None:
    return None if deployment.mapping.world_size > 1 else "one process serves alone, without mpirun"


def _one_replica(deployment: Deployment) -> str | None:
    return None if deployment.parallel.replicas > 1 else "there is no second replica that serves meanwhile"


DOOR_FAILS = (Promise("restart_s", DOOR_RESTART_S), Promise("cut_after_s", ERROR_WITHIN_S), none("wrong"), RECOVERED)
FAILURES = (
    Failure("kill-rank", "the last rank of a replica is killed", kill_rank, GROUP_FAILS, _one_replica),
    Failure("hang-rank", "the last rank of a replica stops for ever", hang_rank, GROUP_HANGS, _one_replica),
    Failure("kill-triton", "the Triton of rank 0 is killed", kill_triton, GROUP_FAILS, _one_replica),
    Failure("kill-stub", "a Python process of Triton is killed", kill_stub, GROUP_FAILS, _one_replica),
    Failure(
        "kill-mpirun",
        "mpirun of a replica is killed",
        kill_mpirun,
        GROUP_FAILS,
        lambda deployment: _one_replica(deployment) or _one_process(deployment),
    ),
    Failure(
        "kill-worker",
        "the worker of a replica is killed",
        kill_worker,
        (*NOTHING_LOST, none("cut_triton"), Promise("cut_after_s", ERROR_WITHIN_S), RECOVERED),
        _one_replica,
    ),
    Failure(
        "kill-front-end",
        "Dynamo's front end is killed",
        kill_part("front end"),
        (*DOOR_FAILS, none("lost_triton"), none("cut_triton")),
    ),
    Failure("kill-envoy", "Envoy is killed", kill_part("envoy"), DOOR_FAILS),
    Failure("kill-gate", "the gate is killed", kill_part("gate"), (*DOOR_FAILS, none("cut"))),
    Failure("slow-replica", "a replica runs half of the time", slow_replica, NOTHING_LOST, _one_replica),
    Failure(
        "poison",
        "wrong requests are sent",
        send_poison,
        (
            none("not_4xx"),
            none("lost"),
            none("cut"),
            none("wrong"),
            Promise("e2e_p99_ratio", OTHERS_P99, chance="e2e_chance"),
            Promise("ttft_p99_ratio", OTHERS_P99, chance="ttft_chance"),
        ),
    ),
    Failure(
        "full-queue",
        "more requests come at once than the door takes",
        full_queue,
        (Promise("refused", 1, at_least=True), none("broken"), none("cut"), none("wrong")),
    ),
    Failure("clients-leave", "clients leave in mid-stream", clients_leave, (Promise("running_s", LEFT_S),), under_load=False),
    Failure("drain", "one replica is told to end", drain, (*DRAINED, RECOVERED), _one_replica),
    Failure("rolling-restart", "all replicas are restarted in turn", rolling_restart, DRAINED, _one_replica),
    Failure(
        "all-down",
        "all replicas are killed",
        all_down,
        (
            none("badly_refused"),
            Promise("refusal_ms", REFUSAL_MS),
            Promise("first_answer_s", FIRST_ANSWER_S),
            none("wrong"),
            RECOVERED,
        ),
    ),
    Failure("stop", "toolkit down, and up again", stop_all, DRAINED, only_before=True),
    Failure("kill-supervisor", "toolkit up itself is killed", kill_supervisor, (none("orphans"), none("wrong"))),
)
"""In the order in which they are made: what needs a new toolkit up comes last."""
NAMES = tuple(failure.name for failure in FAILURES)
