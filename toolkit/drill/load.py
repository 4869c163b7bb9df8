"""The load of a drill: requests to all APIs through the door, at random moments, answered or not."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from toolkit.client import Client, GenerateRequest, connect
from toolkit.client.base import ServerError
from toolkit.config.deployment import Deployment
from toolkit.drill.request import APIS, OPENAI, TRITON_GRPC, TRITON_HTTP, Request
from toolkit.errors import ToolkitError
from toolkit.gateway.door import door_url

PROMPTS = (
    "The history of Rome begins with",
    "Water boils when",
    "The three primary colours are",
    "Once there was a small boat that",
)
TOKENS = 24
TRITON_MODEL = "tensorrt_llm_bls"
"""Not the ensemble: it computes an answer to its end even if its client has left."""
SHARES = {OPENAI: 2, TRITON_HTTP: 1, TRITON_GRPC: 1}
"""The share of the requests that each API gets, as weights."""
SCHEMES = {OPENAI: "openai+", TRITON_HTTP: "", TRITON_GRPC: ""}
QUIET_AT_ONCE = 4
DEADLINE_S = 120.0
FULL_IN_GRPC = re.compile("UNAVAILABLE|RESOURCE_EXHAUSTED|Maximum queue size")
"""Text of a gRPC error after which the same request may succeed later. Errors in a stream have no code."""
SINCE_1970 = time.time() - time.perf_counter()
"""Converts the client's clock (perf_counter) to seconds since 1970, the clock of `toolkit up`."""
Texts = Mapping[tuple[str, int], str]
"""The text of each prompt: of OpenAI's API, which applies the chat template, and of Triton's protocols."""


def form(api: str) -> str:
    """The API whose text of the quiet run an answer must equal: Triton's two protocols give the same text."""
    return api if api == OPENAI else TRITON_HTTP


@dataclass
class Clients:
    """One client for each API of the door that the drills can use."""

    deployment: Deployment
    each: dict[str, Client] = field(default_factory=dict)

    @property
    def apis(self) -> list[str]:
        return list(self.each)

    def request(self, api: str, prompt: int, tokens: int | None = None) -> GenerateRequest:
        """A greedy request whose answer has exactly this many tokens: the end token does not end it."""
        count = tokens or min(TOKENS, max(4, self.deployment.limits.max_seq_len // 4))
        if api == OPENAI:
            greedy = {"temperature": 0.0, "end_id": -1}
            return GenerateRequest(PROMPTS[prompt], count, self.deployment.served_name, sampling=greedy)
        return GenerateRequest(PROMPTS[prompt], count, TRITON_MODEL, sampling={"end_id": -1})

    def send(self, api: str, prompt: int, expected: str = "", tokens: int | None = None) -> Request:
        """Send a request and read the answer to its end. Failures of the server are in the result, not raised."""
        sent, first, text, error, status, again = time.time(), None, "", "", None, None
        try:
            for event in self.each[api].generate_stream(self.request(api, prompt, tokens), DEADLINE_S):
                first = first or event.received + SINCE_1970
                text += event.text
        except ServerError as failure:
            error, status, again = str(failure), failure.status, failure.retry_after
            if api == TRITON_GRPC and FULL_IN_GRPC.search(failure.what):
                status = 503
        except ToolkitError as failure:
            error = str(failure)
        return Request(api, prompt, sent, first, time.time(), text, expected, error, status, again)

    def quiet(self) -> tuple[Texts, float]:
        """The text of each prompt without any failure, and the answers per second.

        Raises ToolkitError for a request without an answer.
        """
        forms = [api for api in self.each if form(api) == api]
        jobs = [(api, prompt) for api in forms for prompt in range(len(PROMPTS))]
        self.send(*jobs[0])  # the first of all may be slow
        start = time.monotonic()
        with ThreadPoolExecutor(QUIET_AT_ONCE) as pool:
            answers = list(pool.map(lambda job: self.send(*job), jobs))
        rate = len(jobs) / (time.monotonic() - start)
        for answer in answers:
            if answer.error:
                hint = f"See: {self.deployment.command('status')}"
                raise ToolkitError(f"a request of the quiet run failed: {answer.error}", hint=hint)
        return {(answer.api, answer.prompt): answer.text for answer in answers}, rate


@contextlib.contextmanager
def clients(deployment: Deployment) -> Iterator[Clients]:
    """A client for each API of the door. With keys or TLS only OpenAI's: the other clients support neither.

    Raises ToolkitError if the deployment is not up.
    """
    gateway = deployment.gateway
    apis = [OPENAI] if gateway.keys_file or gateway.tls else APIS
    with contextlib.ExitStack() as stack:
        each = {}
        for api in apis:
            url = door_url(deployment, "grpc" if api == TRITON_GRPC else "http")
            if url is None:
                raise not_up(deployment)
            each[api] = stack.enter_context(connect(SCHEMES[api] + url, first_event_timeout_s=DEADLINE_S))
        yield Clients(deployment, each)


def not_up(deployment: Deployment) -> ToolkitError:
    """The error for a deployment that has no door."""
    return ToolkitError("is not up", where=deployment.file, hint=f"Start it: {deployment.command('up', '--detach')}")


class Load:
    """An open loop: only the rate and the seed decide what is sent, and when."""

    def __init__(self, clients: Clients, texts: Texts, rate: float, seed: int) -> None:
        self._clients, self._texts, self.rate = clients, texts, rate
        self._draw = random.Random(seed)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []
        self._requests: list[Request] = []
        self._arrivals = threading.Thread(target=self._arrive, name="arrivals", daemon=True)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def begin(self) -> None:
        """Start sending."""
        self._arrivals.start()

    def end(self) -> list[Request]:
        """Stop sending, wait for the answers, and return all requests in the order in which they were sent."""
        self._ended.set()
        if self._arrivals.is_alive():
            self._arrivals.join()
        for thread in self._running:
            thread.join()
        return sorted(self._requests, key=lambda request: request.sent)

    def send(self, apis: Sequence[str], tokens: int) -> None:
        """Send one more request with a short answer to each of these APIs, now."""
        for api in apis:
            self._begin(api, tokens)

    def unanswered(self, after: float) -> list[str]:
        """The APIs without a whole answer to a request that was sent after this moment."""
        with self._lock:
            answered = {r.api for r in self._requests if r.sent > after and not r.error}
        return [api for api in self._clients.apis if api not in answered]

    def _arrive(self) -> None:
        apis = self._clients.apis
        weights = [SHARES[api] for api in apis]
        due = time.monotonic()
        while True:
            due += self._draw.expovariate(self.rate)
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            self._begin(self._draw.choices(apis, weights)[0])

    def _begin(self, api: str, tokens: int | None = None) -> None:
        prompt = self._draw.randrange(len(PROMPTS))
        thread = threading.Thread(target=self._one, args=(api, prompt, tokens), name=f"request to {api}", daemon=True)
        self._running.append(thread)
        thread.start()

    def _one(self, api: str, prompt: int, tokens: int | None) -> None:
        request = self._clients.send(api, prompt, self._texts[form(api), prompt], tokens)
        if tokens and request.text and request.expected.startswith(request.text):
            request = replace(request, expected=request.text)  # a short answer is the beginning of the long one
        with self._lock:
            self._requests.append(request)
