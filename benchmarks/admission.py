"""What the door's admission does in an overload: with it, without it, and against the best fixed rate.

    python benchmarks/admission.py simulated                 # the scheduler and step times of the plan, in seconds
    python benchmarks/admission.py real --folder FOLDER      # Envoy, Triton and the controller, in minutes

Both send Poisson arrivals at 1.5 times the capacity. `simulated` counts; `real` measures with toolkit loadtest on a
rehearsal whose steps last a fixed time, so the capacity is known by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from toolkit.config.load import load_deployment
from toolkit.plan.predict import Prediction, predict
from toolkit.processes import free_port
from toolkit.reports.loadtest.samples import read_samples
from toolkit.simulate.replica import Replica, Sequence
from toolkit.simulate.run import Runner
from toolkit.slo.metrics import is_good
from toolkit.slo.target import limits_of_a_request
from toolkit.up.admission_bounds import bounds
from toolkit.up.admission_law import AdmissionLaw, Bounds, Change, QueueAge, Signals
from toolkit.workload import Traffic

LOOK_S, WINDOW_S, FEW = 1.0, 10.0, 10
OVERLOAD, FIXED = 1.5, (0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
TOOLKIT = (sys.executable, "-P", "-m", "toolkit")
TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-llama"
FLAGSHIP = Path(__file__).parents[1] / "build_configs" / "llama3-70b-h100-2xtp4-fp16.yaml"


class Door(Runner):
    """A simulated deployment behind a door that `law` controls; without a law it lets in `most`."""

    def __init__(self, prediction: Prediction, traffic: Traffic, law: AdmissionLaw | None, most: int) -> None:
        count = prediction.deployment.parallel.replicas
        config, times = prediction.scheduling, prediction.times
        replicas = [Replica(number, config, times, (0.0, 0.0), prediction.front_s) for number in range(count)]
        super().__init__(traffic, replicas)
        self.law, self.most = law, most
        self.turned_away: list[int] = []
        self.changes: list[tuple[float, Change]] = []
        self._sent: list[Sequence] = []
        self._next_look, self._refused_since, self._admitted = LOOK_S, 0, 0
        self._age = QueueAge()

    def send(self, due: float, replica: Replica) -> None:
        while self.law and self._next_look <= due:
            self._look(self._next_look)
            self._next_look += LOOK_S
        active = sum(one.outstanding for one in self.replicas)
        if active >= (self.law.limit if self.law else self.most):
            number, _ = self.waiting.popleft()
            self.turned_away.append(number)
            self._refused_since += 1
            return
        self._admitted += 1
        super().send(due, replica)

    def _look(self, now: float) -> None:
        assert self.law
        waiting = sum(one.scheduler.stats().waiting for one in self.replicas)
        ended = [s for _, s in self.ended if s.ended > now - WINDOW_S and s.ttft_ms is not None]
        recent, answers = (sorted((s.ttft_ms or 0.0) / 1e3 for s in ended), sorted(s.ended - s.due for s in ended))
        signals = Signals(
            active=sum(one.outstanding for one in self.replicas),
            refused=self._refused_since,
            queue_age_s=self._age.seen(now, self._admitted, waiting),
            ttft_s=recent[int(0.99 * (len(recent) - 1))] if len(recent) >= FEW else None,
            answer_s=answers[int(0.99 * (len(recent) - 1))] if len(recent) >= FEW else 0.0,
            kv_used=max(one.scheduler.pool.used / one.scheduler.config.num_blocks for one in self.replicas),
        )
        self._refused_since = 0
        if change := self.law.step(now, signals):
            self.changes.append((now, change))


@dataclass(frozen=True)
class Outcome:
    """What became of the requests that were due after the warm-up."""

    offered: float
    """Requests/s."""
    due: int
    admitted: int
    good: int
    seconds: float

    @property
    def inside(self) -> float:
        """The share of the admitted requests that met every limit."""
        return self.good / self.admitted if self.admitted else 0.0

    @property
    def goodput(self) -> float:
        """Requests/s that met every limit."""
        return self.good / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.offered:6.1f}/s  {self.due:6,} due  {self.admitted:6,} admitted  "
            f"{self.inside:6.1%} of them inside  goodput {self.goodput:5.2f}/s"
        )


def simulated(prediction: Prediction, rate: float, seconds: float, law: AdmissionLaw | None) -> tuple[Outcome, Door]:
    """`seconds` of Poisson arrivals at this rate; the first fifth is not counted."""
    count = math.ceil(rate * seconds)
    traffic = prediction.long_traffic.opened().repeated(count).at(rate)
    limits = prediction.deployment.limits
    door = Door(prediction, traffic, law, limits.max_sequences + limits.max_queue_size)
    door.run(None)
    start = seconds / 5
    judged = [sample for _, sample in door.ended if sample.due >= start]
    limits_ms = limits_of_a_request(prediction.deployment.slo)
    due = sum(request.due >= start for request in traffic.requests)
    good = sum(is_good(sample, limits_ms) for sample in judged)
    admitted = sum(sample.ok for sample in judged)
    return Outcome(rate, due, admitted, good, seconds - start), door


def bounds_of(prediction: Prediction) -> tuple[Bounds, int]:
    """As toolkit up derives them from the plan, and where the limit begins."""
    e2e_s = (prediction.percentile("e2e_ms", 50) or 0.0) / 1e3
    return bounds(prediction.deployment, prediction.capacity.highest, e2e_s)


def simulate_all(file: Path, seconds: float) -> None:
    prediction = predict(load_deployment(file))
    capacity = prediction.capacity.saturated
    print(f"{file.name}: serves {capacity:.1f} requests/s at most by the plan; {seconds:g} s of Poisson arrivals each")
    fixed = [simulated(prediction, capacity * share, seconds, None)[0] for share in FIXED]
    for outcome in fixed:
        print(f"fixed     {outcome}")
    best = max(outcome.goodput for outcome in fixed)
    print(f"without   {simulated(prediction, OVERLOAD * capacity, seconds, None)[0]}")
    limits, start = bounds_of(prediction)
    law = AdmissionLaw(limits, start, WINDOW_S)
    outcome, door = simulated(prediction, OVERLOAD * capacity, seconds, law)
    print(f"with      {outcome}; {outcome.goodput / best:.1%} of the best fixed rate")
    seen = [change.limit for _, change in door.changes]
    print(f"limit     from {limits.floor} to {limits.ceiling}, began at {start}, {len(seen)} changes, {seen[-12:]}")


# Real: steps of a fixed time in a rehearsal, so SEQUENCES x 1 / (TOKENS x STEP_S) requests/s are served at most.
STEP_S, TOKENS, SEQUENCES, PROMPT = 0.1, 20, 8, 32
CAPACITY = SEQUENCES / (TOKENS * STEP_S)
PACED = f"""
from toolkit.engine.rehearsal.worker import Rank

_compute = Rank.compute
Rank.compute = lambda rank, message: (time.sleep({STEP_S}), _compute(rank, message))[1]
"""
FULL = "the door is full"


def made(folder: Path, admission: str) -> Path:
    """A deployment that is built, with steps of STEP_S."""
    folder.mkdir(parents=True, exist_ok=True)
    first = free_port()
    content = {
        "engine": "rehearsal",
        "model": {"path": str(TINY)},
        "limits": {"max_sequences": SEQUENCES, "max_num_tokens": 512, "max_seq_len": 256, "max_queue_size": 64},
        "hardware": {"gpu": "none"},
        "serving": {"http_port": first, "grpc_port": free_port(), "metrics_port": free_port()},
        "gateway": {"port": free_port()},
        "recovery": {"canary_s": 60},
        "monitoring": {"exporter": False, "prometheus": "off"},
        "tuning": {"admission": admission},
        "slo": {"ttft_ms": {"p99": 1000}},
        "output": str(folder / admission),
    }
    file = folder / f"{admission}.yaml"
    file.write_text(yaml.safe_dump(content))
    for command in ("build", "repo"):
        subprocess.run([*TOOLKIT, command, str(file)], check=True, stdout=subprocess.DEVNULL)
    model = load_deployment(file).repository_dir / "tensorrt_llm/1/model.py"
    text = model.read_text()
    start = text.index('"""Seconds until an alarm')  # the repository's lock knows the size: leave an explanation out
    end = text.index('"""', start + 3) + 3
    model.write_text((text[:start] + text[end:] + PACED).ljust(len(text) - 1) + "\n")
    return file


def measured(file: Path, rate: float, seconds: float) -> Outcome:
    """A load test through the door; its first fifth is not counted."""
    workload = file.parent / "workload.yaml"
    lengths = {"prompt_tokens": PROMPT, "output_tokens": TOKENS}
    workload.write_text(yaml.safe_dump({**lengths, "rate": rate, "requests": math.ceil(rate * seconds)}))
    command = [*TOOLKIT, "loadtest", str(file), "--workload", str(workload), "--no-self-check"]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deployment = load_deployment(file)
    samples = read_samples(deployment.report_dir)
    begin = min(sample.due for sample in samples)
    judged = [sample for sample in samples if sample.due - begin >= seconds / 5]
    limits_ms = limits_of_a_request(deployment.slo)
    refused = sum(FULL in (sample.error or "") for sample in judged)
    good = sum(is_good(sample, limits_ms) for sample in judged)
    span = max(sample.due for sample in samples) - begin - seconds / 5
    return Outcome(rate, len(judged), len(judged) - refused, good, span)


def measure(folder: Path, admission: str, shares: list[float], seconds: float) -> None:
    file, began = made(folder, admission), time.time()
    print(f"admission {admission}: serves {CAPACITY:.1f} requests/s at most; {seconds:g} s each", flush=True)
    subprocess.run([*TOOLKIT, "up", "--detach", str(file)], check=True, stdout=subprocess.DEVNULL)
    try:
        for share in shares:
            print(f"{share:.2f} x  {measured(file, share * CAPACITY, seconds)}", flush=True)
            time.sleep(8)  # until its queue is empty
    finally:
        subprocess.run([*TOOLKIT, "down", str(file)], check=True, stdout=subprocess.DEVNULL)
    events = (load_deployment(file).output / "run/events.jsonl").read_text().splitlines()
    limits = [one["limit"] for one in map(json.loads, events) if one["part"] == "admission" and one["time"] > began]
    if limits:
        print(f"limit: {len(limits) - 1} changes, {limits}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("simulated")
    command.add_argument("--config", type=Path, default=FLAGSHIP)
    command.add_argument("--seconds", type=float, default=300.0)
    command = commands.add_parser("real")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--admission", choices=("auto", "off"), default="auto")
    command.add_argument("--shares", type=float, nargs="+", default=[OVERLOAD], help="rates, as shares of the capacity")
    command.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    if options.command == "simulated":
        simulate_all(options.config, options.seconds)
    else:
        measure(options.folder.resolve(), options.admission, options.shares, options.seconds)


if __name__ == "__main__":
    main()
