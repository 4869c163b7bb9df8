"""What the door adds, and what other routers add, in front of the same servers of known truth, in one interleaved run.

    python benchmarks/gateway.py --streams 64 --rounds 3 --tokens 50
        [--router 'NAME=COMMAND --port {port} {a} {b}' ...] [--kill NAME]

Starts two servers of known truth, and in front of them the whole door: Envoy, gate, Dynamo's front end, two workers.
`--kill NAME` ends a server under load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
import yaml

from toolkit.config.load import load_deployment
from toolkit.config.operating import PROMPT_WEIGHT
from toolkit.gateway import admin
from toolkit.gateway.dynamo import environment
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.limits import CLUSTERS, write_limits
from toolkit.gateway.places import Places
from toolkit.gateway.programs import envoy
from toolkit.known_truth import KnownTruth, Settings
from toolkit.processes import free_port

PYTHON = (sys.executable, "-P", "-m")
MODEL = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-llama"
NAME = "llama"
PARTS = ("envoy", "gate", "front end", "worker 0", "worker 1")


class Door:
    """The parts that `toolkit up` starts, in front of servers that are there."""

    def __init__(self, servers: list[KnownTruth], folder: Path) -> None:
        first = servers[0].settings
        content = {
            "engine": "rehearsal",
            "model": {"path": str(MODEL)},
            "parallel": {"replicas": len(servers)},
            "limits": {"max_sequences": 128, "max_num_tokens": 256, "max_seq_len": 1024},
            "hardware": {"gpu": "none"},
            "serving": {
                "http_port": first.http_port,
                "grpc_port": first.grpc_port,
                "metrics_port": first.http_port + 5,
            },
            "gateway": {"port": free_port(), "model_name": NAME},
            "output": str(folder / "out"),
        }
        file = folder / "door.yaml"
        file.write_text(yaml.safe_dump(content))
        self.deployment = load_deployment(file)
        self.places = Places(folder, folder, free_port(), free_port())
        self.places.discovery.mkdir()
        write_endpoints(self.places, [Traffic(replica) for replica in self.deployment.per_replica()])
        write_limits(self.places, dict.fromkeys(CLUSTERS, self.deployment.most_requests))
        self.places.envoy_config.write_text(yaml.safe_dump(config(self.deployment, self.places)))
        environ = {**os.environ, **environment(self.places.discovery)}
        workers = [
            [*PYTHON, "toolkit.gateway.worker", str(file), "rehearsal", str(number), NAME]
            for number in range(len(servers))
        ]
        commands = [
            [*[str(envoy()), "-c", str(self.places.envoy_config), "--disable-hot-restart"], "--concurrency", "1"],
            [*PYTHON, "toolkit.gateway.gate", str(file), "rehearsal", str(self.places.gate_port)],
            [*PYTHON, "toolkit.gateway.frontend", str(self.places.front_port), "3", str(PROMPT_WEIGHT)],
            *workers,
        ]
        log = (folder / "log").open("w")
        self.processes = [
            subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=log, stderr=log)
            for command in commands
        ]
        for process in self.processes[3:]:
            assert process.stdin
            process.stdin.write(b"join\n")
            process.stdin.flush()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.deployment.gateway.port}"

    def memory_mb(self) -> dict[str, float]:
        """Memory of each part, by PSS: what processes share, as the Python program, is divided among them."""
        return {
            name: psutil.Process(process.pid).memory_full_info().pss / 1e6
            for name, process in zip(PARTS, self.processes, strict=True)
        }

    def processor_s(self) -> dict[str, float]:
        """Processor time of each part so far."""
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return {name: part.user + part.system for name, part in zip(PARTS, times, strict=True)}

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def ask_body(openai: bool, tokens: int, number: int) -> tuple[str, dict[str, object]]:
    """Path and body of one stream. Each prompt is another one."""
    prompt = f"{number} tell me more"
    if openai:
        body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0}
        return "/v1/completions", body
    return "/v2/models/ensemble/generate_stream", {"text_input": prompt, "max_tokens": tokens, "stream": True}


async def one(session: aiohttp.ClientSession, url: str, tokens: int, number: int) -> tuple[float, float, int, str]:
    """Seconds to the first token and to the end, tokens, and what went wrong."""
    openai = url.startswith("openai+")
    path, body = ask_body(openai, tokens, number)
    start, first, count = time.perf_counter(), 0.0, 0
    try:
        async with session.post(url.removeprefix("openai+") + path, json=body) as answer:
            if answer.status != 200:
                return 0.0, time.perf_counter() - start, 0, f"{answer.status}"
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                data = json.loads(line[6:])
                if "error" in data:
                    return first, time.perf_counter() - start, count, "error in the stream"
                if data.get("text_output") or (data.get("choices") and data["choices"][0].get("text")):
                    count += 1
                    first = first or time.perf_counter() - start
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        return first, time.perf_counter() - start, count, type(error).__name__
    return first, time.perf_counter() - start, count, "" if count >= tokens * 0.9 else f"{count} pieces"


async def load(url: str, streams: int, seconds: float, tokens: int) -> list[tuple[float, float, int, str]]:
    """A closed loop of `streams` clients, which begin one after the other."""
    results: list[tuple[float, float, int, str]] = []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
    ) as session:
        end, numbers = time.perf_counter() + seconds, iter(range(10**9))

        async def client(delay: float) -> None:
            await asyncio.sleep(delay)
            while time.perf_counter() < end:
                results.append(await one(session, url, tokens, next(numbers)))

        await asyncio.gather(*(client(number / streams) for number in range(streams)))
    return results


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


@contextmanager
def servers(ttft_ms: float, itl_ms: float) -> Iterator[list[KnownTruth]]:
    base = 21000
    settings = [
        Settings(ttft_ms=ttft_ms, itl_ms=itl_ms, http_port=base + 10 * n, grpc_port=base + 1 + 10 * n) for n in (0, 1)
    ]
    with KnownTruth(settings[0]) as first, KnownTruth(settings[1]) as second:
        yield [first, second]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--ttft-ms", type=float, default=100)
    parser.add_argument("--itl-ms", type=float, default=20)
    parser.add_argument("--router", action="append", default=[], metavar="NAME=COMMAND", help="with {port}, {a}, {b}")
    parser.add_argument("--kill", metavar="NAME", help="end a server under load of this target only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="door") as tmp, servers(options.ttft_ms, options.itl_ms) as each:
        door = Door(each, Path(tmp))
        routers, targets = (
            [],
            {
                "straight, Triton": each[0].http,
                "door, Triton": door.url,
                "straight, OpenAI": f"openai+{each[0].http}",
                "door, OpenAI": f"openai+{door.url}",
            },
        )
        for text in options.router:
            name, _, command = text.partition("=")
            port = free_port()
            shell = command.format(port=port, a=each[0].http, b=each[1].http).split()
            with (Path(tmp) / f"{name}.log").open("w") as log:
                routers.append(subprocess.Popen(shell, stdout=log, stderr=log))
            targets[name] = f"openai+http://127.0.0.1:{port}"
        try:
            wait_ready(door, targets)
            kill(options, targets, each[1].pid) if options.kill else compare(options, targets, door)
        finally:
            for process in routers:
                process.terminate()
            door.end()


def wait_ready(door: Door, targets: dict[str, str]) -> None:
    """Until each answers; one that does not within 60 s is left out."""
    for name, url in list(targets.items()):
        end = time.time() + 60
        while time.time() < end and (asyncio.run(load(url, 1, 0.01, 5)) or [(0, 0, 0, "?")])[0][3]:
            time.sleep(0.5)
        if time.time() >= end:
            print(f"{name}: does not answer", asyncio.run(load(url, 1, 0.01, 5))[0])
            del targets[name]
    assert admin.active_requests(door.places.admin_socket) is not None


def compare(options: argparse.Namespace, targets: dict[str, str], door: Door) -> None:
    """Rounds in which all targets take turns; medians over the rounds."""
    rows: dict[str, list[list[tuple[float, float, int, str]]]] = {name: [] for name in targets}
    for _ in range(options.rounds):
        for name, url in targets.items():
            before = door.processor_s()
            rows[name].append(asyncio.run(load(url, options.streams, options.seconds, options.tokens)))
            if name.startswith("door"):
                tokens = sum(answer[2] for answer in rows[name][-1])
                each = {part: (end - before[part]) / tokens for part, end in door.processor_s().items()}
                print(f"{name}, us a token:", {part: round(1e6 * seconds) for part, seconds in each.items()})
    print(f"load average {os.getloadavg()}")
    for name, rounds in rows.items():
        base = rows["straight, OpenAI" if targets[name].startswith("openai+") else "straight, Triton"]
        added = [
            [
                1e3 * (percentile(firsts(mine), q) - percentile(firsts(theirs), q))
                for mine, theirs in zip(rounds, base, strict=True)
            ]
            for q in (0.5, 0.99)
        ]
        speed = [rate(mine) / rate(theirs) for mine, theirs in zip(rounds, base, strict=True)]
        bad = [answer[3] for answers in rounds for answer in answers if answer[3]]
        print(
            f"| {name} | {sum(map(len, rounds))} | "
            f"{statistics.median(1e3 * percentile(firsts(mine), 0.5) for mine in rounds):.1f} | "
            f"{statistics.median(added[0]):+.1f} | {statistics.median(added[1]):+.1f} | "
            f"{statistics.median(speed):.3f} | {len(bad)} {sorted(set(bad))[:3]} |"
        )
    parts = door.memory_mb()
    print("memory MB", {name: round(size) for name, size in parts.items()}, "sum", round(sum(parts.values())))


def firsts(answers: list[tuple[float, float, int, str]]) -> list[float]:
    return [answer[0] for answer in answers if answer[0]]


def rate(answers: list[tuple[float, float, int, str]]) -> float:
    """Tokens/s of a stream, as the sum of tokens over the sum of their times."""
    return sum(answer[2] for answer in answers) / sum(answer[1] for answer in answers)


def kill(options: argparse.Namespace, targets: dict[str, str], victim: int) -> None:
    """One of the two servers is killed under load, once for one target."""
    name = options.kill

    async def run() -> list[tuple[float, float, int, str]]:
        task = asyncio.create_task(load(targets[name], options.streams, options.seconds, options.tokens))
        await asyncio.sleep(options.seconds / 2)
        os.kill(victim, signal.SIGKILL)
        return await task

    answers = asyncio.run(run())
    lost = [answer for answer in answers if answer[3] and not answer[2]]
    cut = [answer for answer in answers if answer[3] and answer[2]]
    print(
        f"| {name} | {len(answers)} | {len(lost)} | {len(cut)} | {sorted({answer[3] for answer in lost + cut})[:4]} |"
    )


if __name__ == "__main__":
    main()
