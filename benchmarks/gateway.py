"""What the door adds, and what other routers add, in front of the same servers of known truth, in one interleaved run.

    python benchmarks/gateway.py --streams 64 --rounds 3 --tokens 50
        [--before CHECKOUT] [--router 'NAME=COMMAND --port {port} {a} {b}' ...] [--kill NAME]

Starts two servers of known truth, and in front of them the whole door: Envoy, gate, Dynamo's front end, two workers.
`--before` adds the door of another state of this repository, in front of the same servers. `--kill NAME` ends a server
under load.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import re
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
import uvloop
import yaml

from toolkit.config.load import load_deployment
from toolkit.config.operating import PROMPT_WEIGHT
from toolkit.gateway.dynamo import environment
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.gate_settings import GateSettings
from toolkit.gateway.limits import CLUSTERS, write_limits
from toolkit.gateway.places import Places
from toolkit.gateway.programs import envoy
from toolkit.gateway.triton_stream import TritonStream
from toolkit.known_truth import KnownTruth, Settings
from toolkit.processes import free_port

PYTHON = (sys.executable, "-P", "-m")
MODEL = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-llama"
NAME = "llama"
WITH_TEXT = re.compile(rb'"text(?:_output)?":\s?"[^"]')
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
            [*PYTHON, "toolkit.gateway.worker", str(file), "rehearsal", str(number), NAME, str(free_port())]
            for number in range(len(servers))
        ]
        commands = [
            [*[str(envoy()), "-c", str(self.places.envoy_config), "--disable-hot-restart"], "--concurrency", "1"],
            [*PYTHON, "toolkit.gateway.gate", GateSettings.of(self.deployment, self.places.gate_port).argument()],
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

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class OtherDoor:
    """The door of another checkout, started by that checkout's own `Door`."""

    PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from gateway import Door, Settings
folder, *servers = sys.argv[1:]
door = Door([SimpleNamespace(settings=Settings(**json.loads(each))) for each in servers], Path(folder))
print(json.dumps([door.url, [process.pid for process in door.processes]]), flush=True)
sys.stdin.read()
door.end()
"""

    def __init__(self, checkout: Path, servers: list[KnownTruth], folder: Path) -> None:
        folder.mkdir()
        path = os.pathsep.join(str(checkout.absolute() / part) for part in ("benchmarks", ""))
        settings = [json.dumps(dataclasses.asdict(server.settings)) for server in servers]
        command = [sys.executable, "-c", self.PROGRAM, str(folder), *settings]
        environ = {**os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        self.url, self.pids = json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


def memory_mb(pids: list[int]) -> dict[str, float]:
    """Memory of each part of a door, by PSS: what processes share, as the Python program, is divided among them."""
    return {name: psutil.Process(pid).memory_full_info().pss / 1e6 for name, pid in zip(PARTS, pids, strict=True)}


def processor_s(pids: list[int]) -> list[float]:
    """Processor time of each process so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return [part.user + part.system for part in times]


def ask_body(openai: bool, tokens: int, number: int) -> tuple[str, dict[str, object]]:
    """Path and body of one stream. Each prompt is another one."""
    prompt = f"{number} tell me more"
    if openai:
        body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0}
        return "/v1/completions", body
    return "/v2/models/ensemble/generate_stream", {"text_input": prompt, "max_tokens": tokens, "stream": True}


async def one_by_ids(triton: TritonStream, tokens: int, number: int) -> tuple[float, float, int, str]:
    """The same as `one`, by token ids over gRPC: what the door's workers ask."""
    lengths = {"input_lengths": 4, "request_output_len": tokens}
    inputs = [("input_ids", "INT32", [number, 1, 2, 3]), *((name, "INT32", [n]) for name, n in lengths.items())]
    start, first, count = time.perf_counter(), 0.0, 0
    async for piece in triton.ask(str(number), [*inputs, ("streaming", "BOOL", [True])]):
        count += len(piece.ids)
        first = first or time.perf_counter() - start
    return first, time.perf_counter() - start, count, "" if count >= tokens * 0.9 else f"{count} tokens"


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
                if b'"error"' in line:
                    return first, time.perf_counter() - start, count, "error in the stream"
                if WITH_TEXT.search(line):  # to parse it as JSON would take a core that the servers and the door share
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
        triton = TritonStream(url.removeprefix("grpc://")) if url.startswith("grpc://") else None

        async def client(delay: float) -> None:
            await asyncio.sleep(delay)
            while time.perf_counter() < end:
                asked = one_by_ids(triton, tokens, next(numbers)) if triton else None
                results.append(await (asked or one(session, url, tokens, next(numbers))))

        await asyncio.gather(*(client(number / streams) for number in range(streams)))
        if triton:
            await triton.close()
    return results


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


@contextmanager
def servers(ttft_ms: float, itl_ms: float) -> Iterator[list[KnownTruth]]:
    base = 19000  # tests use 20000 to 32000
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
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another state of this repository")
    parser.add_argument("--kill", metavar="NAME", help="end a server under load of this target only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="door") as tmp, servers(options.ttft_ms, options.itl_ms) as each:
        doors: dict[str, Door | OtherDoor] = {"door": Door(each, Path(tmp))}
        if options.before:
            doors["door before"] = OtherDoor(options.before, each, Path(tmp) / "before")
        routers, targets = [], {"straight, Triton": each[0].http, "door, Triton": doors["door"].url}
        targets["straight, token ids"] = each[0].grpc
        targets["straight, OpenAI"] = f"openai+{each[0].http}"
        targets |= {f"{name}, OpenAI": f"openai+{door.url}" for name, door in doors.items()}
        for text in options.router:
            name, _, command = text.partition("=")
            port = free_port()
            shell = command.format(port=port, a=each[0].http, b=each[1].http).split()
            with (Path(tmp) / f"{name}.log").open("w") as log:
                routers.append(subprocess.Popen(shell, stdout=log, stderr=log))
            targets[name] = f"openai+http://127.0.0.1:{port}"
        try:
            wait_ready(targets)
            if options.kill:
                kill(options, targets, each[1].pid)
            else:
                compare(options, targets, doors, [server.pid for server in each])
        finally:
            for process in routers:
                process.terminate()
            for door in doors.values():
                door.end()


def wait_ready(targets: dict[str, str]) -> None:
    """Until each answers; one that does not within 60 s is left out."""
    for name, url in list(targets.items()):
        end = time.time() + 60
        while time.time() < end and (asyncio.run(load(url, 1, 0.01, 5)) or [(0, 0, 0, "?")])[0][3]:
            time.sleep(0.5)
        if time.time() >= end:
            print(f"{name}: does not answer", asyncio.run(load(url, 1, 0.01, 5))[0])
            del targets[name]


def compare(
    options: argparse.Namespace, targets: dict[str, str], doors: dict[str, Door | OtherDoor], servers: list[int]
) -> None:
    """Rounds in which all targets take turns, in random order; medians over the rounds."""
    rows: dict[str, list[list[tuple[float, float, int, str]]]] = {name: [] for name in targets}
    costs: dict[str, list[list[float]]] = {name: [] for name in targets}
    names = (*PARTS, "servers", "client")
    for number in range(options.rounds + 1):
        for name in random.sample(list(targets), len(targets)):
            url = targets[name]
            if not number:  # the first round warms up: connections, threads, memory
                asyncio.run(load(url, options.streams, 2, options.tokens))
                continue
            door = doors.get(name.partition(",")[0])
            pids = [*(door.pids if door else ()), *servers, os.getpid()]
            before = processor_s(pids)
            rows[name].append(asyncio.run(load(url, options.streams, options.seconds, options.tokens)))
            tokens = sum(answer[2] for answer in rows[name][-1])
            *parts, first, second, client = (
                1e6 * (end - start) / tokens for start, end in zip(before, processor_s(pids), strict=True)
            )
            costs[name].append([*(parts or [0.0] * len(PARTS)), first + second, client])
    for name, each in costs.items():
        medians = map(statistics.median, zip(*each, strict=True))
        print(f"{name}, us a token:", {part: round(cost) for part, cost in zip(names, medians, strict=True)})
    print(f"load average {os.getloadavg()}")
    for name, rounds in rows.items():
        base = rows[straight(name, targets[name])]
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
    for name, door in doors.items():
        sizes = memory_mb(door.pids)
        print(name, "memory MB", {part: round(size) for part, size in sizes.items()}, "sum", round(sum(sizes.values())))


def straight(name: str, url: str) -> str:
    """What a target is held against: the way to the server that it itself goes.

    The door makes OpenAI's API from Triton's token ids; a router passes on a server's own.
    """
    if name.endswith(", OpenAI") and not name.startswith("straight"):
        return "straight, token ids"
    return "straight, OpenAI" if url.startswith("openai+") else "straight, Triton"


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
    uvloop.install()
    main()
