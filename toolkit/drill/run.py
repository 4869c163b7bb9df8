"""Runs drills one after the other: load, failure, recovery, verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.config.deployment import Deployment
from toolkit.drill.failures import FAILURES, NAMES, Failure
from toolkit.drill.load import Load, Texts, clients
from toolkit.drill.node import Event, Node, part_of
from toolkit.drill.promise import Judged, Verdict, recovery_s, worst
from toolkit.drill.scene import Scene
from toolkit.drill.trial import Trial
from toolkit.errors import ToolkitError, shown
from toolkit.up import control

SECONDS, SEED = 8.0, 1
MOST_RATE = 20.0
"""The highest rate without --rate, because each request is a thread."""
LOGGED_S = 1.5
"""Time for Envoy to write its access log."""
DETECTED_S = 60.0
"""The longest wait until `toolkit up` notices a failure."""
WORSE = ("degraded", "down")
BACK = ("ready", "running")


@dataclass(frozen=True)
class Settings:
    """How the drills are run."""

    rate: float
    """Requests per second, all APIs together."""
    seconds: float = SECONDS
    """Seconds of load before each failure, and again after recovery."""
    seed: int = SEED


@dataclass(frozen=True)
class Drill:
    """One drill with its verdict. It has no trial if it was skipped."""

    failure: Failure
    verdict: Verdict
    judged: tuple[Judged, ...] = ()
    trial: Trial | None = None
    why: str = ""
    """Why it was skipped, or could not be finished."""


def chosen(names: Sequence[str]) -> list[Failure]:
    """The failures of these names in the table's order; all when none are given. Raises ToolkitError."""
    if unknown := [name for name in names if name not in NAMES]:
        raise ToolkitError(f"{shown(unknown[0])} is not a drill", hint=f"The drills are: {', '.join(NAMES)}.")
    return [failure for failure in FAILURES if not names or failure.name in names]


def quiet_run(deployment: Deployment, rate: float | None, seconds: float | None) -> tuple[Texts, Settings]:
    """The text of each prompt without any failure, and the settings of the drills.

    Without `rate`, the load is what four clients reach, each sending one request after another. One replica alone can
    serve that. Raises ToolkitError if the deployment is not up, or does not answer.
    """
    Node(deployment).wait_ready(recovery_s(deployment))
    with clients(deployment) as sending:
        texts, answered_per_s = sending.quiet()
    return texts, Settings(rate or min(answered_per_s, MOST_RATE), seconds or SECONDS)


def run(
    deployment: Deployment,
    failures: Sequence[Failure],
    texts: Texts,
    settings: Settings,
    tell: Callable[[str], None],
) -> Iterator[Drill]:
    """Run the failures, and yield each drill when it is over. Raises ToolkitError if the deployment does not recover
    between two."""
    node, limit_s = Node(deployment), recovery_s(deployment)
    for failure in failures:
        if why := failure.skipped(deployment):
            yield Drill(failure, Verdict.SKIPPED, why=why)
            continue
        tell(f"{failure.name}: {failure.meaning}")
        try:
            yield _drill(node, failure, texts, settings, limit_s)
        except ToolkitError as error:
            yield Drill(failure, Verdict.FAIL, why=str(error))
            _bring_back(node, limit_s)


def _bring_back(node: Node, limit_s: float) -> None:
    """Make the deployment ready for the next drill. Raises ToolkitError if that fails."""
    if control.status(node.deployment) is None:
        control.up(node.deployment, detach=True)
    node.wait_ready(limit_s)


def _drill(node: Node, failure: Failure, texts: Texts, settings: Settings, limit_s: float) -> Drill:
    node.wait_ready(limit_s)
    with clients(node.deployment) as sending, Load(sending, texts, settings.rate, settings.seed) as load:
        scene = Scene(node, sending, load, settings.seconds, limit_s)
        try:
            trial = _trial(node, failure, scene)
        finally:
            scene.clean_up()
    if trial is None:
        return Drill(failure, Verdict.SKIPPED, why="there is no such process")
    judged = tuple(promise.judge(trial, node.deployment) for promise in failure.promises)
    return Drill(failure, worst([one.verdict for one in judged]), judged, trial)


def _trial(node: Node, failure: Failure, scene: Scene) -> Trial | None:
    began, mark, migrations = time.time(), node.access_mark(), node.migrations()
    if failure.under_load:
        scene.load.begin()
        time.sleep(scene.seconds)
    failure.make(scene)
    if not scene.hit:
        return None
    recovered, restarted = _wait_recovered(node, scene)
    if failure.under_load:
        time.sleep(scene.seconds)
    requests = scene.load.end()
    time.sleep(LOGGED_S)
    events, after = node.events(scene.hit), node.migrations()
    if failure.only_before:
        requests = [request for request in requests if request.sent < scene.hit]
    victims = set(scene.victims)
    groups = {part_of(replica) for replica in node.replicas}
    accesses = node.accesses(mark)
    return Trial(
        began=began,
        hit=scene.hit,
        ended=time.time(),
        requests=tuple(requests),
        events=tuple(events),
        detected=next((event["time"] for event in events if _tells(event, victims)), None),
        restarted=restarted,
        recovered=recovered,
        first_ready=next((e["time"] for e in events if e["part"] in groups and e["event"] == "ready"), None),
        tries=tuple(
            entry["tries"] for entry in accesses if (entry.get("tries") or 0) > 1 and entry.get("status") == 200
        ),
        migrated=None if after is None or migrations is None else max(0, after - migrations),
        extra=scene.extra,
        note=scene.note,
    )


def _tells(event: Event, victims: set[str]) -> bool:
    """Whether an event says that something is wrong with one of these parts, or with the whole."""
    return bool(victims) and (event["part"] in victims or event["event"] in WORSE)


def _wait_recovered(node: Node, scene: Scene) -> tuple[float | None, float | None]:
    """(When all was ready again, when the last failed part had a new process); None for never."""
    before = scene.victims

    def renewed() -> bool:
        return all(p.pid not in (None, before[p.name].pid) for p in node.state().parts if p.name in before)

    def back() -> bool:
        state = node.state()
        return state.phase == "ready" and all(part.phase in BACK for part in state.parts if part.name in before)

    noticed = scene.until(lambda: renewed() or node.state().phase != "ready", DETECTED_S) if before else True
    if not noticed or not scene.until(lambda: renewed() and back()):
        return None, None
    state = node.state()
    moments = [part.since for part in state.parts if part.name in before]
    restarted = max(moments, default=scene.hit)
    return max(restarted, state.since, scene.hit), restarted
