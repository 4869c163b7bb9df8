"""The YAML's sections for `toolkit up`: the front door, and what happens when something fails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from toolkit.config.sections import LoosePath, Port, Positive, PositiveFloat, Section

ETCD = "etcd://"
PROMPT_WEIGHT = 4
"""What the router of OpenAI's requests counts for a block of the prompt that must be computed, where a block that a
request already holds counts 1. Flagship, blocks of 32 tokens: to compute one takes 2 x 70.6e9 x 32 FLOP on 8 GPUs of
989e12 FLOP/s, 0.6 ms; to read one in 200 steps takes 200 x 10.5 MB at 8 x 3.35 TB/s, 0.08 ms: 7 times as much. Less
than that, so that the first of many prompts with one beginning do not all queue at the replica that has it."""

Switch = Annotated[Literal["auto", "off"], BeforeValidator(lambda value: "off" if value is False else value)]
"""YAML 1.1 reads `off` without quotes as the truth value."""


class Tls(Section):
    """The door's own certificate; clients then use https and grpcs."""

    certificate: LoosePath
    """PEM, with the chain."""
    key: LoosePath


class NodeTls(Section):
    """What a node shows to the other nodes, and how it knows them: PEM files, the same paths on every node."""

    ca: LoosePath
    """Signs the certificates of this fleet's nodes and of etcd, and nothing else: who has one is let in."""
    certificate: LoosePath
    """For servers and clients, with the DNS name `toolkit-node`."""
    key: LoosePath


class Gateway(Section):
    """The front door: one port for OpenAI's API and for Triton's HTTP and gRPC."""

    host: str = "127.0.0.1"
    """An IPv4 address or a name: where the door listens."""
    port: Port = 8080
    model_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What OpenAI's clients call the model; the deployment's name when it is not given."""
    migration: bool = True
    """OpenAI streams of a replica that dies continue on another one. False: they end with an error."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """How often a request is sent to another replica before its first byte."""
    first_byte_timeout_s: PositiveFloat = 60
    """The longest that one try may wait for its first byte, queue time included."""
    max_body_mb: Annotated[int, Field(ge=1, le=64)] = 8
    max_requests: Positive | None = None
    """Requests in the door at once, counted apart for OpenAI's API, Triton's HTTP and Triton's gRPC; the rest get 429.

    max_sequences + max_queue_size when it is not given; 64 times that with etcd, where nodes come and go.
    """
    keys_file: LoosePath | None = None
    """A line per API key: NAME SHA256. Without it, nobody needs a key."""
    requests_per_minute: Positive | None = None
    """For each API key; more get 429."""
    tls: Tls | None = None
    discovery: str = "file"
    """How replicas and front ends find each other: `file` on one node, `etcd://HOST:2379` (or several) on many."""
    role: Literal["all", "worker", "front"] = "all"
    """What this node has: replicas and a door, only replicas, or only a door."""
    interface: str | None = None
    """This node's interface (eth1) or IPv4 address on the network between the nodes. Needed with etcd."""
    node_tls: NodeTls | None = None
    """Mutual TLS between the nodes, and with etcd. Needed with etcd."""
    tool_parser: str | None = None
    """How the model writes tool calls, by Dynamo's name (llama3_json, hermes, ...). Without it, `tools` are refused."""

    @property
    def etcd(self) -> tuple[str, ...]:
        """etcd's members as HOST:PORT; none with discovery by files."""
        return tuple(self.discovery.removeprefix(ETCD).split(",")) if self.discovery != "file" else ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Keys and certificates that `toolkit up` reads."""
        tls = (self.tls.certificate, self.tls.key) if self.tls else ()
        nodes = (self.node_tls.ca, self.node_tls.certificate, self.node_tls.key) if self.node_tls else ()
        return (*((self.keys_file,) if self.keys_file else ()), *tls, *nodes)

    @property
    def has_door(self) -> bool:
        """Whether clients reach this node."""
        return self.role != "worker"

    @property
    def on_loopback(self) -> bool:
        """Whether only the machine itself reaches the door."""
        return self.host == "localhost" or self.host.startswith("127.")


class Recovery(Section):
    """What `toolkit up` does when a part fails."""

    attempts: Positive = 5
    """Starts of one part that may fail in a row before it is given up."""
    backoff_s: PositiveFloat = 1.0
    """Before the first restart of a replica; doubles each time, with full jitter."""
    backoff_cap_s: PositiveFloat = 60.0
    canary_s: PositiveFloat | None = None
    """The longest that a request for one token may take before the group counts as not answering; 15 if not given."""
    standby: Literal[0, 1] = 0
    """Replicas that are loaded and take requests only when another one fails."""
    fallback: Annotated[tuple[Path, ...], Field(strict=False)] = ()
    """Deployments for the GPUs that are left when one is lost, the best first."""


IMAGE_PATTERN = r"^[^\s@:][^\s]*$"
WEBHOOK_PATTERN = r"^https?://[^\s/]+[^\s]*$"
OTLP_PATTERN = r"^http://[A-Za-z0-9.-]+(:\d{1,5})?/?$"
CLAIM_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
"""toolkit.config.load says both in words."""


class Deploy(Section):
    """What `toolkit deploy` cannot derive: names at your site."""

    image: Annotated[str, Field(pattern=IMAGE_PATTERN, max_length=255)] | None = None
    """What the image with the toolkit is called. Kubernetes needs it; it pulls the image from its registry."""
    claim: Annotated[str, Field(pattern=CLAIM_PATTERN, max_length=253)] | None = None
    """Kubernetes: the PersistentVolumeClaim that holds the model and gets what is built."""


class Fleet(Section):
    """Many nodes like this one, for `toolkit plan --fleet`."""

    router: Literal["power-of-two", "least-requests", "prefix-aware", "random"] | None = None
    """How the door chooses a replica. Not given: prefix-aware if prompts share prefixes, else power-of-two."""
    failures_per_1000_node_hours: Annotated[float, Field(ge=0, le=1000)] = 0.16
    """Meta, The Llama 3 Herd of Models: 419 unexpected interruptions in 54 days of 2,048 nodes of 8 H100."""
    repair_hours: PositiveFloat = 24.0
    """From a node's failure until it, or another one in its place, serves again."""
    price_per_gpu_hour: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """In any currency."""
    day: Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Field(strict=False)] | None = None
    """The traffic of each of 24 hours, in any unit. Not given: a curve between the peak and 30 % of it."""


class Tuning(Section):
    """What adapts while the deployment serves."""

    admission: Switch = "off"
    """auto: the door lets in as many requests at once as keep slo.ttft_ms; the rest get 429."""
    admission_floor: Positive | None = None
    """The door always lets in so many. Default: a quarter of what runs at once at the capacity."""
    admission_ceiling: Positive | None = None
    """It never lets in more. Default: what can run, and a queue that lasts as long as the TTFT limit."""


class Monitoring(Section):
    """What watches the deployment while it serves. All of it listens on loopback only."""

    exporter: bool = True
    """`toolkit up` starts the exporter: GPUs, balance, SLO, restarts, predictions, as metrics for Prometheus."""
    exporter_port: Port = 9480
    prometheus: Switch = "auto"
    """auto: `toolkit up` starts Prometheus with our scrape configuration, rules and alerts, where it is installed."""
    prometheus_port: Port = 9490
    retention_days: Annotated[int, Field(ge=1, le=3650)] = 15
    """How long Prometheus keeps the time series."""
    alert_webhook: Annotated[str, Field(pattern=WEBHOOK_PATTERN, max_length=2000)] | None = None
    """Where alerts are sent, by Alertmanager where it is installed. Without it, Prometheus alone shows them."""
    alertmanager_port: Port = 9493
    otlp: Annotated[str, Field(pattern=OTLP_PATTERN, max_length=300)] | None = None
    """An OpenTelemetry collector that takes OTLP over HTTP (http://HOST:4318): gets traces of the door and Triton."""
    trace_share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """The share of requests that are traced."""
    traffic: LoosePath | None = None
    """A file that gets a line per request: arrival, lengths, hashed blocks of the prompt; never its text."""
