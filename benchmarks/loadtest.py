"""How wrong load generators are: each against the server of known truth, whose own record is the truth.

    python benchmarks/loadtest.py streams [--aiperf PATH]     # 64 at once, and more until the error is too large
    python benchmarks/loadtest.py arrivals [--aiperf PATH]    # 50 requests/s: how evenly they are sent
    python benchmarks/loadtest.py capacity                    # the search, where the capacity is known

TTFT 200 ms, ITL 20 ms, answers of 200 tokens. Results are in benchmarks/loadtest.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.config.load import load_deployment
from toolkit.known_truth import KnownTruth, Record, Settings
from toolkit.reports.loadtest import report
from toolkit.slo.distribution import Distribution

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "fixtures" / "tiny-llama"
TOKENS, ROUNDS = 200, 2
STREAMS = (64, 100, 150, 200, 300, 400)
TTFT_P50_MS, TTFT_P99_MS = 5.0, 15.0
"""A generator whose TTFT is wrong by more is not asked for more streams."""
RATE, REQUESTS = 50, 1000


@dataclass(frozen=True)
class Told:
    """What a generator says of its requests, in ms; the first round is left out."""

    ttft_ms: list[float]
    tpot_ms: list[float]
    lag_ms: list[float] | None = None
    """Sent after it was due, where the generator says it."""


@dataclass(frozen=True)
class Load:
    """So many streams at once, or requests at a rate."""

    streams: int | None
    rate: float | None
    requests: int
    warmup: int
    tokens: int


Generator = Callable[[KnownTruth, Load, Path], Told]


def loadtest(folder: Path, workload: dict[str, Any], url: str) -> list[str]:
    """The command of a load test with this workload, its files written."""
    fixed = {"output": "fixed", "prompt_tokens": 40}
    (folder / "load.yaml").write_text(json.dumps(fixed | workload))
    content = {
        "engine": "rehearsal",
        "model": {"path": str(TINY)},
        "limits": {"max_seq_len": 512},
        "slo": {"ttft_ms": {"p99": 1000}, "tpot_ms": {"p99": 30}, "requests_per_s": 4},
        "output": str(folder / "out"),
    }
    (folder / "deployment.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-m", "toolkit", "loadtest", str(folder / "deployment.yaml")]
    return [*command, "--workload", str(folder / "load.yaml"), "--target", url]


def ours(protocol: str) -> Generator:
    """`toolkit loadtest`, as it is."""

    def run(truth: KnownTruth, load: Load, folder: Path) -> Told:
        how: dict[str, object] = {"arrivals": "closed", "users": load.streams}
        if load.rate:
            how = {"arrivals": "constant", "rate": load.rate}
        workload = {"output_tokens": load.tokens, "requests": load.requests + load.warmup, **how}
        url = f"openai+{truth.http}" if protocol == "openai" else truth.url(protocol)
        quiet([*loadtest(folder, workload, url), "--no-self-check"], folder)
        samples = sorted(report.read(load_deployment(folder / "deployment.yaml")).samples, key=lambda one: one.due)
        judged = samples[load.warmup :]
        assert all(one.ok and one.tokens_out == load.tokens for one in judged)
        return Told(
            [one.ttft_ms or 0.0 for one in judged],
            [one.tpot_ms or 0.0 for one in judged],
            [one.dispatch_ms for one in judged],
        )

    return run


def aiperf(program: str, workers: dict[str, object]) -> Generator:
    """AIPerf, over OpenAI's form: it does not speak Triton's."""

    def run(truth: KnownTruth, load: Load, folder: Path) -> Told:
        how: dict[str, object] = {"--concurrency": load.streams} if load.streams else {"--request-rate": load.rate}
        if load.rate:
            how["--request-rate-mode"] = "constant"
        wanted = {
            "--model": "m",
            "--url": truth.url("http"),
            "--endpoint-type": "chat",
            "--request-count": load.requests,
            "--warmup-request-count": load.warmup,
            "--synthetic-input-tokens-mean": 40,
            "--output-tokens-mean": load.tokens,
            "--extra-inputs": "ignore_eos:true",
            "--tokenizer": TINY,
            "--ui": "none",
            "--output-artifact-dir": folder,
            **how,
            **workers,
        }
        options = [str(word) for pair in wanted.items() for word in pair]
        quiet([program, "profile", *options, "--streaming", "--use-server-token-count"], folder)
        lines = map(json.loads, (folder / "profile_export.jsonl").read_text().splitlines())
        found = [one["metrics"] for one in lines if one["metadata"]["benchmark_phase"] == "profiling"]
        ttft, tpot = ([one[name]["value"] for one in found] for name in ("time_to_first_token", "inter_token_latency"))
        return Told(ttft, tpot)

    return run


PLAIN = """
import gevent, json, os, time
from locust import FastHttpUser, HttpUser, events, task
from locust.exception import StopUser
FOUND, LEFT = [], list(range(int(os.environ["REQUESTS"])))
class Requests(HttpUser):
    abstract = True
    def lines(self, url, body):
        with self.client.post(url, json=body, stream=True, catch_response=True) as answer:
            yield from answer.iter_lines(decode_unicode=True)
class Fast(FastHttpUser):
    abstract = True
    def lines(self, url, body):
        yield from self.client.iter_lines(url, "POST", json=body)
class Asker(globals()[os.environ["KIND"]]):
    @task
    def ask(self):
        if not LEFT:
            raise StopUser
        number, begin, times = LEFT.pop(), time.perf_counter(), []
        body = {"text_input": "x " * 40, "max_tokens": int(os.environ["TOKENS"]), "stream": True, "id": str(number)}
        url = "/v2/models/tensorrt_llm_bls/generate_stream"
        for line in self.lines(url, body):
            if line.startswith("data:"):
                times.append(time.perf_counter())
                json.loads(line[5:])
        FOUND.append((begin, times))
        if len(FOUND) == int(os.environ["REQUESTS"]):
            gevent.spawn(self.environment.runner.quit)
@events.quitting.add_listener
def leave(**_):
    json.dump(FOUND, open(os.environ["FOUND"], "w"))
"""
"""What one writes when one streams with Locust for the first time."""


def plain_locust(kind: str) -> Generator:
    def run(truth: KnownTruth, load: Load, folder: Path) -> Told:
        (folder / "plain.py").write_text(PLAIN)
        count = load.requests + load.warmup
        told = {"KIND": kind, "REQUESTS": count, "TOKENS": load.tokens, "FOUND": folder / "found.json"}
        options = ["--users", str(load.streams), "--spawn-rate", str(load.streams), "--headless", "--only-summary"]
        command = [sys.executable, "-m", "locust", "-f", str(folder / "plain.py"), *options]
        environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
        quiet([*command, "--host", truth.url("http")], folder, environment)
        found = sorted(json.loads((folder / "found.json").read_text()))[load.warmup :]
        return Told(
            [(times[0] - begin) * 1e3 for begin, times in found],
            [(times[-1] - times[0]) / (len(times) - 1) * 1e3 for _, times in found],
        )

    return run


def quiet(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    with (folder / "log").open("wb") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=ROOT, timeout=90).returncode
    if code not in (0, 1, 2):  # verdicts
        raise SystemExit((folder / "log").read_text()[-3000:])


def generators(program: str | None) -> Iterator[tuple[str, Generator]]:
    yield "toolkit, HTTP", ours("http")
    yield "toolkit, gRPC", ours("grpc")
    yield "toolkit, OpenAI", ours("openai")
    if program:
        yield "AIPerf, one worker", aiperf(program, {"--workers-max": 1})
        yield "AIPerf, as it likes", aiperf(program, {})
    yield "plain Locust, HttpUser", plain_locust("Requests")
    yield "plain Locust, FastHttpUser", plain_locust("Fast")


def measure(generator: Generator, load: Load) -> tuple[Told, list[Record], float]:
    """What it told, the server's record of the same requests, and the CPU seconds it took, its start included."""
    with tempfile.TemporaryDirectory() as folder, KnownTruth(Settings(ttft_ms=200, itl_ms=20)) as truth:
        before = children_s()
        told = generator(truth, load, Path(folder))
        cpu = children_s() - before
        records = sorted(truth.records(load.requests + load.warmup), key=lambda one: one.arrived)
    return told, records[load.warmup :], cpu


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def off(told: Sequence[float], true: Sequence[float], q: float) -> float:
    """What was told less what was true, of a percentile."""
    return (Distribution(told).percentile(q) or 0.0) - (Distribution(true).percentile(q) or 0.0)


def streams(program: str | None) -> None:
    columns = ("generator", "streams", "tokens/s", "TTFT off P50", "P99", "TPOT off P50", "P99", "CPU s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, generator in generators(program):
        for count in STREAMS:
            load = Load(count, None, ROUNDS * count, count, TOKENS)
            told, records, cpu = measure(generator, load)
            ttft = [(one.token_times[0] - one.arrived) * 1e3 for one in records]
            tpot = [(one.token_times[-1] - one.token_times[0]) / (TOKENS - 1) * 1e3 for one in records]
            sent = [moment for one in records for moment in one.token_times]
            rate = len(sent) / (max(sent) - min(sent))
            errors = [off(told.ttft_ms, ttft, q) for q in (50, 99)] + [off(told.tpot_ms, tpot, q) for q in (50, 99)]
            cells = [f"{error:+.2f}" for error in errors]
            print(f"| {name} | {count} | {rate:,.0f} | {' | '.join(cells)} | {cpu:.1f} |", flush=True)
            if abs(errors[0]) > TTFT_P50_MS or abs(errors[1]) > TTFT_P99_MS:
                break


def arrivals(program: str | None) -> None:
    """Of a constant rate every request has its moment: off is how far the arrival is from the grid that fits best."""
    columns = ("generator", "requests/s", "arrival off P50", "P99", "max", "says of itself P99", "CPU s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, generator in generators(program):
        if name.startswith("plain"):
            continue  # it has no open loop
        told, records, cpu = measure(generator, Load(None, RATE, REQUESTS, 50, 10))
        times = [one.arrived for one in records]
        gaps = [after - before for before, after in pairwise(times)]
        assert len(times) == REQUESTS and sum(gaps) > 0
        # The earliest against the grid was sent in time, and all others late.
        late = [time - number / RATE for number, time in enumerate(times)]
        found = Distribution((one - min(late)) * 1e3 for one in late)
        itself = "-" if told.lag_ms is None else f"{Distribution(told.lag_ms).percentile(99):.2f}"
        cells = [f"{found.percentile(q):.2f}" for q in (50, 99, 100)]
        print(f"| {name} | {RATE} | {' | '.join(cells)} | {itself} | {cpu:.1f} |", flush=True)


def capacity(_: str | None) -> None:
    """The search, on a server of 32 answers at a time, each of 0.2 + 99 x 0.02 s."""
    settings = Settings(ttft_ms=200, itl_ms=20, slots=32)
    with tempfile.TemporaryDirectory() as folder, KnownTruth(settings) as truth:
        command = loadtest(Path(folder), {"arrivals": "constant", "output_tokens": 100}, truth.http)
        begin = time.monotonic()
        subprocess.run([*command, "--find-capacity"], cwd=ROOT)
        print(f"in {time.monotonic() - begin:.0f} s; true: {settings.capacity(100):.3f} requests/s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["streams", "arrivals", "capacity"])
    parser.add_argument("--aiperf", help="Its program, in an environment of its own.")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}")
    {"streams": streams, "arrivals": arrivals, "capacity": capacity}[options.what](options.aiperf)
    print(f"load average after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
