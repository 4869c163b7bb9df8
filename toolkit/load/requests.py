"""What the users of a load test send: the workload of a file, or the YAML's `loadtest`, a closed loop of questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.client import GenerateRequest
from toolkit.config.rules import MOST_USERS
from toolkit.config.workload_rules import LEAST_RATE, MOST_RATE, MOST_REQUESTS
from toolkit.errors import ToolkitError, shown
from toolkit.files import distribution
from toolkit.load.exchange import ASKED_OF_THE_SERVER
from toolkit.model.chat_template import Messages, chat_message
from toolkit.workload.file import load_workload, workload_of
from toolkit.workload.load_plan import LoadPlan, ToSend, load_plan
from toolkit.workload.prompts import as_chat, load_prompts
from toolkit.workload.traffic import with_arrivals

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

MODEL = "tensorrt_llm_bls"
WORKLOADS = distribution.folder("loadtest") / "workloads"
OF_THE_YAML = "yaml"
"""The name of the deployment's own `workload`."""


@dataclass(frozen=True)
class Asked:
    """A request that is due, and what of it the next turn of its conversation needs."""

    request: GenerateRequest
    sent: ToSend | None = None


class Questions:
    """The YAML's `loadtest`: `users` ask the same questions in turn, each when its last answer has ended."""

    turns, think_s = 1, 0.0
    tokens_per_s = None
    notes: tuple[str, ...] = ()

    def __init__(self, deployment: Deployment, requests: int, users: int, model: str, as_messages: bool) -> None:
        self._load = load = deployment.loadtest
        self.model = model
        self.users: int | None = users
        self.warmup = load.warmup_requests
        self.count = requests + self.warmup
        self._questions = load_prompts(load.prompts)
        path, template = deployment.model.path, deployment.model.chat_template
        self._prompts = self._questions if as_messages else as_chat(path, self._questions, template)

    @property
    def firsts(self) -> range:
        """The numbers that begin a conversation: here each."""
        return range(self.count)

    def due(self, number: int) -> float:
        return 0.0

    def request(self, number: int) -> Asked:
        place = number % len(self._prompts)
        messages = (chat_message("user", self._questions[place]),)
        return Asked(_request(number, self._prompts[place], messages, self._load.max_tokens, {}, self.model))

    def after(self, asked: Asked, answer: str) -> Asked | None:
        return None

    def settings(self) -> dict[str, Any]:
        return {
            "loop": "closed",
            "max_tokens": self._load.max_tokens,
            "prompts": f"{len(self._prompts)} from {self._load.prompts or 'the built-in questions'}",
            "output": "natural",
        }


class Planned:
    """The requests of a workload, each made from its number."""

    def __init__(self, plan: LoadPlan, name: str, model: str) -> None:
        self._plan, self._name, self.model = plan, name, model
        self.users, self.count = plan.users, plan.count
        self.warmup = min(plan.users or plan.count // 20, plan.count // 2)
        self.turns, self.think_s = plan.workload.turns, plan.workload.think_s
        self.notes = plan.notes

    @property
    def firsts(self) -> range:
        return self._plan.firsts

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens that an open loop asks for; None in a closed one, where that is the server's to say."""
        outputs = self._plan.contents.outputs
        return None if self._plan.rate is None else self._plan.rate * sum(outputs) / len(outputs)

    def due(self, number: int) -> float:
        assert self._plan.dues is not None
        return self._plan.dues[number // self.turns]

    def request(self, number: int) -> Asked:
        return self._asked(self._plan[number])

    def after(self, asked: Asked, answer: str) -> Asked | None:
        """The next turn of a conversation, None after its last."""
        assert asked.sent is not None
        following = self._plan.next_turn(asked.sent, answer)
        return None if following is None else self._asked(following)

    def settings(self) -> dict[str, Any]:
        workload, plan = self._plan.workload, self._plan
        loop = {"loop": "closed"} if plan.users else {"loop": "open", "arrivals": workload.arrivals, "rate": plan.rate}
        return {
            **loop,
            "workload": self._name,
            "kind": workload.kind,
            "output": workload.output,
            "turns": workload.turns,
            "seed": workload.seed,
            **({"notes": list(plan.notes)} if plan.notes else {}),
        }

    def _asked(self, sent: ToSend) -> Asked:
        request = _request(sent.number, sent.prompt, sent.messages, sent.max_tokens, sent.sampling, self.model)
        return Asked(request, sent)


Work = Questions | Planned


def work_of(
    deployment: Deployment,
    workload: str | None = None,
    rate: float | None = None,
    requests: int | None = None,
    users: int | None = None,
    seed: int | None = None,
    model: str | None = None,
    *,
    as_messages: bool = False,
) -> Work:
    """What to send. `workload` is a file, the name of one in loadtest/workloads, or `yaml` for the deployment's own.

    What else is given replaces what it says. A server that takes requests `as_messages` applies the chat template
    itself, so the model here needs none. Raises ToolkitError, one line.
    """
    _check_range("rate", rate, LEAST_RATE, MOST_RATE)
    _check_range("requests", requests, 1, MOST_REQUESTS)
    _check_range("users", users, 1, MOST_USERS)
    if workload is None:
        load = deployment.loadtest
        if rate is not None or seed is not None:
            raise ToolkitError("--rate and --seed are of a workload", hint="Give one: --workload short, for instance.")
        return Questions(deployment, requests or load.requests, users or load.users, model or MODEL, as_messages)
    file = None if workload == OF_THE_YAML else workload_file(workload)
    wanted = with_arrivals(workload_of(deployment) if file is None else load_workload(file))
    # What has times of its own has so many requests as it has; of the others there can be more.
    own_times = wanted.arrivals == "trace" or wanted.stages or wanted.ramp or wanted.spike
    if users is not None and own_times:
        what = f"--users: {users} streams at a time, and the workload says when each is sent"
        raise ToolkitError(what, where=file, hint="Leave it out, or use another workload.")
    arrivals = None if users is None else "closed"
    changes = {"arrivals": arrivals, "users": users, "seed": seed, "requests": None if own_times else requests}
    wanted = wanted.model_copy(update={name: value for name, value in changes.items() if value is not None})
    _check_range("users", wanted.users, 1, MOST_USERS)
    plan = load_plan(wanted, deployment, file, as_messages)
    if requests is not None:
        plan = plan.first(requests)
    if rate is not None:
        if plan.users:
            raise ToolkitError(
                "a closed loop has no rate",
                where=file,
                hint="Leave out --rate, --find-capacity and --sweep, or --users; or use another workload.",
            )
        plan = plan.at(rate)
    return Planned(plan, OF_THE_YAML if file is None else file.stem, model or MODEL)


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Raise ToolkitError for a number that no test can have, from the command line, the form or a workload."""
    if value is not None and not least <= value <= most:
        raise ToolkitError(f"{name}: expected from {least:g} to {most:,.0f}, got {shown(value)}")


def workload_file(name: str) -> Path:
    """A path, or the name of a file of loadtest/workloads. Raises ToolkitError naming those that are there."""
    path = Path(name)
    if path.suffix or path.exists():
        return path
    known = sorted(file.stem for file in WORKLOADS.glob("*.yaml"))
    if name not in known:
        hint = f"Use a file, {OF_THE_YAML} (the deployment's own), or {', '.join(known)}."
        raise ToolkitError(f"--workload: {shown(name)} is not known", hint=hint)
    return WORKLOADS / f"{name}.yaml"


def _request(
    number: int, prompt: str, messages: Messages | None, max_tokens: int, sampling: dict[str, Any], model: str
) -> GenerateRequest:
    asked = {**ASKED_OF_THE_SERVER, **sampling}
    return GenerateRequest(prompt, max_tokens, model, f"load-{number}", asked, messages)
