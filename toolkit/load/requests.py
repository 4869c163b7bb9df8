"""The requests of a load test: those of a workload, or the questions of the YAML's `loadtest` in a closed loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.client import GenerateRequest
from toolkit.config.rules import MOST_USERS
from toolkit.config.workload import LEAST_RATE, MOST_RATE, MOST_REQUESTS, LoadWorkload
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
YAML = (".yaml", ".yml")
TRACE = "trace:"
"""May stand before the name of a trace, as toolkit plan wants it."""
OF_THE_YAML = "yaml"
"""The name of the deployment's own `workload`."""


@dataclass(frozen=True)
class PlannedRequest:
    """A request, and what the next turn of its conversation needs of it."""

    request: GenerateRequest
    sent: ToSend | None = None


class QuestionSource:
    """The YAML's `loadtest`: `users` ask the same questions in turn, each after its last answer."""

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
        """The numbers that begin a conversation: all, because each question stands alone."""
        return range(self.count)

    def due(self, number: int) -> float:
        return 0.0

    def request(self, number: int) -> PlannedRequest:
        place = number % len(self._prompts)
        messages = (chat_message("user", self._questions[place]),)
        return PlannedRequest(_request(number, self._prompts[place], messages, self._load.max_tokens, {}, self.model))

    def after(self, planned: PlannedRequest, answer: str) -> PlannedRequest | None:
        return None

    def settings(self) -> dict[str, Any]:
        return {
            "loop": "closed",
            "max_tokens": self._load.max_tokens,
            "prompts": f"{len(self._prompts)} from {self._load.prompts or 'the built-in questions'}",
            "output": "natural",
        }


class WorkloadSource:
    """The requests of a workload. Each is made from its number."""

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
        """Output tokens/s that an open loop asks for. None in a closed loop: there the server sets the pace."""
        outputs = self._plan.contents.outputs
        return None if self._plan.rate is None else self._plan.rate * sum(outputs) / len(outputs)

    def due(self, number: int) -> float:
        assert self._plan.dues is not None
        return self._plan.dues[number // self.turns]

    def request(self, number: int) -> PlannedRequest:
        return self._planned(self._plan[number])

    def after(self, planned: PlannedRequest, answer: str) -> PlannedRequest | None:
        """The next turn of a conversation. None after its last turn."""
        assert planned.sent is not None
        following = self._plan.next_turn(planned.sent, answer)
        return None if following is None else self._planned(following)

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

    def _planned(self, sent: ToSend) -> PlannedRequest:
        request = _request(sent.number, sent.prompt, sent.messages, sent.max_tokens, sent.sampling, self.model)
        return PlannedRequest(request, sent)


RequestSource = QuestionSource | WorkloadSource


def request_source(
    deployment: Deployment,
    workload: str | None = None,
    rate: float | None = None,
    requests: int | None = None,
    users: int | None = None,
    seed: int | None = None,
    model: str | None = None,
    *,
    as_messages: bool = False,
) -> RequestSource:
    """The requests to send. `workload` is a file, a name in loadtest/workloads, or `yaml` for the deployment's own.

    A file that is not YAML is a trace: each of its requests is sent at its time. The other arguments replace values of
    the workload. A server that takes requests `as_messages` applies the chat template itself, so the model here needs
    none. Raises ToolkitError.
    """
    _check_range("rate", rate, LEAST_RATE, MOST_RATE)
    _check_range("requests", requests, 1, MOST_REQUESTS)
    _check_range("users", users, 1, MOST_USERS)
    if workload is None:
        load = deployment.loadtest
        if rate is not None or seed is not None:
            raise ToolkitError("--rate and --seed need --workload", hint="For example: --workload short.")
        return QuestionSource(deployment, requests or load.requests, users or load.users, model or MODEL, as_messages)
    file = None if workload == OF_THE_YAML else workload_file(workload)
    traffic = with_arrivals(workload_of(deployment) if file is None else _workload_in(file))
    # A workload with its own times has a fixed number of requests.
    own_times = traffic.arrivals == "trace" or traffic.stages or traffic.ramp or traffic.spike
    if users is not None and own_times:
        what = "--users: cannot be combined with a workload that says when each request is sent"
        raise ToolkitError(what, where=file, hint="Leave out --users, or use another workload.")
    arrivals = None if users is None else "closed"
    changes = {"arrivals": arrivals, "users": users, "seed": seed, "requests": None if own_times else requests}
    traffic = traffic.model_copy(update={name: value for name, value in changes.items() if value is not None})
    _check_range("users", traffic.users, 1, MOST_USERS)
    plan = load_plan(traffic, deployment, file, as_messages)
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
    return WorkloadSource(plan, OF_THE_YAML if file is None else file.stem, model or MODEL)


def _workload_in(file: Path) -> LoadWorkload:
    """The workload of a file: of YAML, or all requests of a trace."""
    if file.suffix in YAML:
        return load_workload(file)
    return LoadWorkload(trace=file.absolute(), requests=MOST_REQUESTS)


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Raise ToolkitError for a number out of range, from the command line, the form or a workload."""
    if value is not None and not least <= value <= most:
        raise ToolkitError(f"{name}: expected from {least:g} to {most:,.0f}, got {shown(value)}")


def workload_file(name: str) -> Path:
    """The file of a path, or of a name in loadtest/workloads. Raises ToolkitError for an unknown name."""
    path = Path(name.removeprefix(TRACE))
    if path.suffix or path.exists():
        return path
    known = sorted(file.stem for file in WORKLOADS.glob("*.yaml"))
    if name not in known:
        hint = f"Use a file, {OF_THE_YAML} (the deployment's own), or {', '.join(known)}."
        raise ToolkitError(f"--workload: {shown(name)} is not a file or a known name", hint=hint)
    return WORKLOADS / f"{name}.yaml"


def _request(
    number: int, prompt: str, messages: Messages | None, max_tokens: int, sampling: dict[str, Any], model: str
) -> GenerateRequest:
    inputs = {**ASKED_OF_THE_SERVER, **sampling}
    return GenerateRequest(prompt, max_tokens, model, f"load-{number}", inputs, messages)
