"""Memory, files and processor time of all that `toolkit up` runs, minute by minute under a gentle load.

    python benchmarks/soak_up.py FOLDER [--minutes 30] [--rate 2]

FOLDER gets a deployment of two tiny replicas with everything that watches: exporter, Prometheus and Alertmanager where
they are installed, the web page, polled once per second as a browser does, and kept traffic. Requests of both APIs
come at a fixed rate: streamed and whole, HTTP and gRPC, chats, refused ones, and clients that leave. Each minute a line
per process goes to FOLDER/soak.csv. The tables at the end are those of benchmarks/soak_up.md.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import psutil
import yaml

from toolkit.client import Client, GenerateRequest, ServerRefused, connect
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import PORTS
from toolkit.gateway.door import folder, read_door
from toolkit.processes import free_port
from toolkit.serve.janitor import RUN_ID

TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-llama"
TOOLKIT = (sys.executable, "-P", "-m", "toolkit")
NAME, WARM_MINUTES = "llama", 5
LINES = ("Shall I compare thee", "A tiny baker", "床前明月光", "Tyger Tyger", "I met a traveller", "Eight ranks")
READY_S = 180.0
FIRST_PORT = 18610
"""Of the replicas. The second one's ports are 10 higher."""


@dataclass(frozen=True)
class Row:
    """A process in one minute. Processes of one name are added up."""

    minute: int
    name: str
    processes: int
    own_mib: float
    """Anonymous memory; pages that several processes have count in parts. Files are left out: the kernel drops them."""
    pss_mib: float
    rss_mib: float
    descriptors: int
    threads: int
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    deployment = made(options.folder)
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}", flush=True)
    with running(deployment, options.folder) as (up, page):
        rows = soak(deployment, (up, page), options)
    print_processes(rows)
    print_files(deployment, options.folder)
    print(f"load average after {os.getloadavg()[0]:.1f}")


def made(place: Path) -> Deployment:
    """Two replicas, built."""
    ports = [free_port() for _ in range(5)]
    content = {
        "engine": "rehearsal",
        "model": {"path": str(TINY)},
        "parallel": {"replicas": 2},
        "limits": {"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 512, "max_queue_size": 16},
        "hardware": {"gpu": "none"},
        "slo": {"ttft_ms": {"p99": 1500}, "itl_ms": {"p99": 100}},
        "serving": {name: FIRST_PORT + place for place, name in enumerate(PORTS)},
        "gateway": {"port": ports.pop(), "model_name": NAME},
        "tuning": {"admission": "auto"},
        "monitoring": {
            "exporter_port": ports.pop(),
            "prometheus_port": ports.pop(),
            "alertmanager_port": ports.pop(),
            "alert_webhook": f"http://127.0.0.1:{ports.pop()}/nobody",
            "traffic": str(place / "traffic.jsonl"),
        },
        "output": str(place / "out"),
    }
    file = place / "soak.yaml"
    file.write_text(yaml.safe_dump(content))
    for command in ("build", "repo"):
        subprocess.run([*TOOLKIT, command, str(file)], check=True, stdout=subprocess.DEVNULL)
    return load_deployment(file)


@contextlib.contextmanager
def running(deployment: Deployment, place: Path) -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """`toolkit up` and the web page."""
    with (place / "up.log").open("w") as log, (place / "page.log").open("w+") as said:
        up = subprocess.Popen([*TOOLKIT, "up", str(deployment.file)], stdout=log, stderr=log)
        try:
            until = time.monotonic() + READY_S
            while not ((state := read_door(deployment)) and state.phase == "ready"):
                assert up.poll() is None and time.monotonic() < until, (place / "up.log").read_text()
                time.sleep(0.5)
            command = [*TOOLKIT, "monitor", str(deployment.file), "--web"]
            page = subprocess.Popen(command, stdout=said, stderr=said)
            try:
                yield psutil.Process(up.pid), psutil.Process(page.pid)
            finally:
                page.terminate()
                page.wait()
        finally:
            up.terminate()
            up.wait()


def soak(
    deployment: Deployment, watched: tuple[psutil.Process, psutil.Process], options: argparse.Namespace
) -> list[Row]:
    """Send the load, and look at all processes each minute."""
    over, outcomes, rows = threading.Event(), Counter[str](), []
    url = page_url(options.folder / "page.log")
    threads = [
        threading.Thread(target=poll, args=(url, over, outcomes)),
        threading.Thread(target=send, args=(deployment, options.rate, over, outcomes)),
    ]
    for thread in threads:
        thread.start()
    try:
        begin = time.monotonic()
        with (options.folder / "soak.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow([field.name for field in fields(Row)])
            for minute in range(options.minutes + 1):
                time.sleep(max(0.0, begin + 60 * minute - time.monotonic()))
                new = list(look(minute, watched))
                rows += new
                table.writerows(astuple(row) for row in new)
                stream.flush()
                print(f"minute {minute}: {sum(row.own_mib for row in new):.1f} MiB, {dict(outcomes)}", file=sys.stderr)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    print(f"{dict(sorted(outcomes.items()))}")
    return rows


def page_url(log: Path) -> str:
    """The address that `toolkit monitor --web` printed."""
    until = time.monotonic() + READY_S
    while "ready: " not in (text := log.read_text()):
        assert time.monotonic() < until, text
        time.sleep(0.2)
    return text.split("ready: ")[1].split()[0]


def poll(url: str, over: threading.Event, outcomes: Counter[str]) -> None:
    """Ask the page for its values once per second, as a browser does."""
    while not over.wait(1.0):
        try:
            with urllib.request.urlopen(f"{url}/data", timeout=10) as answer:
                answer.read()
            outcomes["page"] += 1
        except OSError as error:
            outcomes[f"page failed: {type(error).__name__}"] += 1


def send(deployment: Deployment, rate: float, over: threading.Event, outcomes: Counter[str]) -> None:
    """Requests at this rate, until `over`."""
    door = f"127.0.0.1:{deployment.gateway.port}"
    urls = [f"http://{door}", f"grpc://{door}", f"openai+http://{door}", f"openai+http://{door}/v1/completions"]
    begin, number = time.monotonic(), 0
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        clients = [stack.enter_context(connect(url)) for url in urls]
        while not over.wait(max(0.0, begin + number / rate - time.monotonic())):
            pool.submit(ask, clients[number % len(clients)], number, outcomes)
            number += 1


def ask(client: Client, number: int, outcomes: Counter[str]) -> None:
    """Request `number`: what it is follows from the number alone. Half of the prompts are new, half have been seen."""
    chance = random.Random(number)
    text = chance.choice(LINES) * chance.randint(1, 5) + (str(number) if chance.random() < 0.5 else "")
    openai, kind = number % 4 >= 2, number // 4 % 4
    model = NAME if openai else "tensorrt_llm_bls"
    request = GenerateRequest(text, chance.randint(2, 24), id=f"soak{number}", model=model)
    try:
        if kind == 0:
            client.generate(request)
        elif kind == 1:
            client.generate(GenerateRequest(text, 0, model=model))
        else:
            events = client.generate_stream(request)
            for count, _ in enumerate(events):
                if kind == 2 and count == 2:
                    break
            events.close()
        outcomes["answered"] += 1
    except ServerRefused:
        outcomes["refused"] += 1
    except Exception as error:
        outcomes[f"failed: {type(error).__name__}: {str(error)[:80]}"] += 1


def look(minute: int, watched: tuple[psutil.Process, psutil.Process]) -> Iterator[Row]:
    """A row for each process of the deployment, by its name."""
    up, page = watched
    named: dict[str, list[Row]] = {}
    for process, name in [(up, "toolkit up"), (page, "web page"), *family(up)]:
        with contextlib.suppress(psutil.Error, OSError):
            memory, cpu = memory_of(process.pid), process.cpu_times()
            row = Row(
                minute,
                name,
                1,
                memory["Pss_Anon"],
                memory["Pss"],
                memory["Rss"],
                process.num_fds(),
                process.num_threads(),
                cpu.user + cpu.system,
            )
            named.setdefault(name, []).append(row)
    for name, rows in sorted(named.items()):
        yield Row(minute, name, *(sum(values) for values in zip(*(astuple(row)[2:] for row in rows), strict=True)))


def memory_of(pid: int) -> dict[str, float]:
    """The values of /proc/PID/smaps_rollup, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split()[0].rstrip(":"): int(line.split()[1]) / 1024 for line in lines}


def family(up: psutil.Process) -> Iterator[tuple[psutil.Process, str]]:
    """All processes below it with a name. A replica's have its number."""
    for process in up.children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            command, environ = process.cmdline(), process.environ()
            replica = environ.get("TOOLKIT_REPLICA", "") if RUN_ID in environ else ""
            yield process, f"{kind_of(command)} {replica}".strip()


def kind_of(command: list[str]) -> str:
    """What the command runs: a Python module, a script, a model of Triton, or a program."""
    if "-m" in command[:4]:
        return command[command.index("-m") + 1]
    scripts = [Path(part) for part in command if part.endswith(".py")]
    if scripts:
        return scripts[0].parts[-3] if scripts[0].name == "model.py" else scripts[0].stem
    return Path(command[0]).name if command else "?"


def print_processes(rows: list[Row]) -> None:
    """Memory at the start, warm and at the end, and the slope of the least-squares line after the warm-up."""
    last = max(row.minute for row in rows)
    warm = min(WARM_MINUTES, last)
    print(
        f"| process | own MiB, minute 0 | minute {warm} | minute {last} | KiB per minute "
        "| with files (PSS) | descriptors | threads | % of a core |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row.name for row in rows):
        of = {row.minute: row for row in rows if row.name == name}
        first, end = of[min(of)], of[max(of)]
        late = [row for row in of.values() if row.minute >= warm]
        slope = (
            np.polyfit([row.minute for row in late], [row.own_mib * 1024 for row in late], 1)[0] if len(late) > 2 else 0
        )
        busy = (end.cpu_s - first.cpu_s) / (60 * max(1, end.minute - first.minute))
        warmed = of.get(warm, end)
        print(
            f"| {name} | {first.own_mib:.1f} | {warmed.own_mib:.1f} | {end.own_mib:.1f} | {slope:+.1f} "
            f"| {end.pss_mib:.1f} | {first.descriptors}, {end.descriptors} "
            f"| {first.threads}, {end.threads} | {busy:.2%} |"
        )


def print_files(deployment: Deployment, place: Path) -> None:
    """The files that grew while it ran."""
    files = [*folder(deployment).rglob("*"), *place.glob("traffic.jsonl*")]
    print("| file | bytes |\n|---|---|")
    for file in sorted(file for file in files if file.is_file() and file.stat().st_size > 4096):
        print(f"| {file.relative_to(place)} | {file.stat().st_size:,} |")


if __name__ == "__main__":
    main()
