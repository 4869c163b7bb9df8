"""The failures that toolkit drill can make, each with what is promised about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from toolkit.config.deployment import Deployment
from toolkit.drill import make
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
from toolkit.drill.scene import Scene


@dataclass(frozen=True)
class Failure:
    """One entry of the table."""

    name: str
    meaning: str
    make: Callable[[Scene], None]
    promises: tuple[Promise, ...]
    skipped: Callable[[Deployment], str | None] = lambda deployment: None
    """Returns why it cannot happen to this deployment."""
    under_load: bool = True
    only_before: bool = False
    """Only requests that were sent before it count."""


def _one_process(deployment: Deployment) -> str | None:
    return None if deployment.mapping.world_size > 1 else "one process serves alone, without mpirun"


def _one_replica(deployment: Deployment) -> str | None:
    return None if deployment.parallel.replicas > 1 else "there is no second replica that serves meanwhile"


def _no_share(deployment: Deployment) -> str | None:
    reason = "a share of a real engine's requests cannot be made to fail"
    return reason if deployment.kind.on_gpus else _one_replica(deployment)


def _no_fallback(deployment: Deployment) -> str | None:
    if not deployment.recovery.fallback or deployment.mapping.world_size < 2:
        return "recovery.fallback names no deployment"
    return "no GPU of a real machine can be taken away by a program" if deployment.kind.on_gpus else None


DOOR_FAILS = (Promise("restart_s", DOOR_RESTART_S), Promise("cut_after_s", ERROR_WITHIN_S), none("wrong"), RECOVERED)
FAILURES = (
    Failure("kill-rank", "the last rank of a replica is killed", make.kill_rank, GROUP_FAILS, _one_replica),
    Failure("hang-rank", "the last rank of a replica stops for ever", make.hang_rank, GROUP_HANGS, _one_replica),
    Failure("kill-triton", "the Triton of rank 0 is killed", make.kill_triton, GROUP_FAILS, _one_replica),
    Failure("kill-stub", "a Python process of Triton is killed", make.kill_stub, GROUP_FAILS, _one_replica),
    Failure(
        "kill-mpirun",
        "mpirun of a replica is killed",
        make.kill_mpirun,
        GROUP_FAILS,
        lambda deployment: _one_replica(deployment) or _one_process(deployment),
    ),
    Failure(
        "kill-worker",
        "the worker of a replica is killed",
        make.kill_worker,
        (*NOTHING_LOST, none("cut_triton"), Promise("cut_after_s", ERROR_WITHIN_S), RECOVERED),
        _one_replica,
    ),
    Failure(
        "kill-front-end",
        "Dynamo's front end is killed",
        make.kill_part("front end"),
        (*DOOR_FAILS, none("lost_triton"), none("cut_triton")),
    ),
    Failure("kill-envoy", "Envoy is killed", make.kill_part("envoy"), DOOR_FAILS),
    Failure("kill-gate", "the gate is killed", make.kill_part("gate"), (*DOOR_FAILS, none("cut"))),
    Failure("slow-replica", "a replica runs half of the time", make.slow_replica, NOTHING_LOST, _one_replica),
    Failure(
        "errors",
        "the engine fails a quarter of a replica's requests",
        make.fail_share,
        (Promise("sent_again", 1, at_least=True), none("lost_http"), none("cut"), none("wrong")),
        _no_share,
    ),
    Failure(
        "poison",
        "wrong requests are sent",
        make.send_poison,
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
        make.full_queue,
        (Promise("refused", 1, at_least=True), none("broken"), none("cut"), none("wrong")),
    ),
    Failure(
        "clients-leave",
        "clients leave in mid-stream",
        make.clients_leave,
        (Promise("running_s", LEFT_S),),
        under_load=False,
    ),
    Failure(
        "gpu-lost",
        "a GPU is lost, and a fallback goes on without it",
        make.lose_gpu,
        (
            Promise("fallbacks", 1, at_least=True),
            none("badly_refused"),
            Promise("refusal_ms", REFUSAL_MS),
            Promise("first_answer_s", FIRST_ANSWER_S),
            RECOVERED,
        ),
        _no_fallback,
    ),
    Failure("drain", "one replica is told to end", make.drain, (*DRAINED, RECOVERED), _one_replica),
    Failure("rolling-restart", "all replicas are restarted in turn", make.rolling_restart, DRAINED, _one_replica),
    Failure(
        "all-down",
        "all replicas are killed",
        make.all_down,
        (
            none("badly_refused"),
            Promise("refusal_ms", REFUSAL_MS),
            Promise("first_answer_s", FIRST_ANSWER_S),
            none("wrong"),
            RECOVERED,
        ),
    ),
    Failure("stop", "toolkit down, and up again", make.stop_all, DRAINED, only_before=True),
    Failure("kill-supervisor", "toolkit up itself is killed", make.kill_supervisor, (none("orphans"), none("wrong"))),
)
"""In the order of the drills: those that need a new toolkit up come last."""
NAMES = tuple(failure.name for failure in FAILURES)
