"""What happens when a process of a served group is killed, suspended or told to end: a row of a Markdown table each.

    python benchmarks/kill_matrix.py CONFIG [--signals KILL STOP TERM] [--processes supervisor janitor ...]

CONFIG, such as build_configs/tiny-llama-rehearsal.yaml, is built and served anew for each row, with tp 1 and pp 2,
under a light load: clients that stream over HTTP and over gRPC, and one that asks for whole answers, each again as
soon as it has its answer. Results are in benchmarks/kill_matrix.md. Exit code 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from engine import variant

from toolkit.client import GenerateRequest, connect
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.serve.janitor import Member, ServerRun, members
from toolkit.serve.state import read_state

PROCESSES = (
    "supervisor",
    "janitor",
    "mpirun",
    "tritonserver of rank 0",
    "tritonserver of rank 1",
    "tensorrt_llm of rank 0",
    "tensorrt_llm of rank 1",
    "preprocessing",
    "postprocessing",
    "tensorrt_llm_bls",
)
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "TERM": signal.SIGTERM}
PROMISED_S = {"KILL": 10.0, "STOP": 45.0, "TERM": 3.0}
"""Until the supervisor has said something or ended. What it does not notice must do no harm: the group serves on."""
GUARDS = ("supervisor", "janitor")
"""The group serves without them."""
PORTS = {"http_port": 18640, "grpc_port": 18641, "metrics_port": 18642}
TOKENS = 150
LOOK_S = 0.02
HANGS = "DOES NOT SERVE"
COLUMNS = ("process", "signal", "noticed", "ended", "said", "exit code", "left", "streams over HTTP", "gRPC", "whole")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=[*SIGNALS])
    parser.add_argument("--processes", nargs="+", choices=PROCESSES, default=PROCESSES)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        config = prepared(options.config, Path(folder))
        for process in options.processes:
            for name in options.signals:
                row = try_one(config, process, name)
                print(f"| {' | '.join(row.cells())} |", flush=True)
                broken += [f"{process}, {name}: {problem}" for problem in row.problems()]
    print(f"\nload average after {os.getloadavg()[0]:.1f}")
    print("\n".join(broken))
    return 1 if broken else 0


def prepared(config: Path, folder: Path) -> Path:
    """The config with other ports and two ranks, built."""
    file = variant(config, folder, 1, 2)
    content = yaml.safe_load(file.read_text())
    content["serving"] = {**content.get("serving", {}), **PORTS}
    file.write_text(yaml.safe_dump(content))
    for command in ("build", "repo"):
        subprocess.run([sys.executable, "-m", "toolkit", command, str(file)], check=True, capture_output=True)
    return file


@dataclass
class Row:
    """What one kill did."""

    process: str
    signal: str
    noticed_s: float | None = None
    ended_s: float | None = None
    said: str = ""
    code: int | None = None
    left: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)

    def cells(self) -> list[str]:
        return [
            self.process,
            self.signal,
            seconds(self.noticed_s),
            seconds(self.ended_s),
            self.said.replace("|", "/") or "nothing",
            str(self.code),
            ", ".join(self.left) or "nothing",
            *self.seen.values(),
        ]

    def problems(self) -> list[str]:
        found = [f"left: {self.left}"] if self.left else []
        found += ["it neither serves nor ends"] if HANGS in self.said else []
        if self.noticed_s is not None and self.noticed_s > PROMISED_S[self.signal]:
            found.append(f"noticed after {self.noticed_s:.1f} s, promised {PROMISED_S[self.signal]:g} s")
        return found


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


class Asking(threading.Thread):
    """A client that asks again and again, until an answer fails. `outcome` is what it saw then."""

    def __init__(self, url: str, stream: bool) -> None:
        super().__init__(daemon=True)
        self._url, self._stream = url, stream
        self.answers, self.outcome, self.done = 0, "", threading.Event()
        self.start()

    def run(self) -> None:
        request = GenerateRequest("A crab", TOKENS, sampling={"end_id": -1})
        try:
            with connect(self._url) as client:
                while not self.done.is_set():
                    if self._stream:
                        for _ in client.generate_stream(request):
                            pass
                    else:
                        client.generate(request)
                    self.answers += 1
        except ToolkitError as error:
            self.outcome = " ".join(error.what.split())


def try_one(config: Path, process: str, name: str) -> Row:
    """Serve, send the signal, and see what comes of it."""
    deployment, errors = load_deployment(config), config.with_suffix(".stderr")
    with errors.open("w") as stream, config.with_suffix(".stdout").open("w") as output:
        command = [sys.executable, "-m", "toolkit", "serve", str(config)]
        serving = subprocess.Popen(command, stdout=output, stderr=stream)
    wait(lambda: "ready: " in config.with_suffix(".stdout").read_text(), 120)
    state = read_state(deployment)
    assert state
    clients = {
        "http": Asking(deployment.url("http"), stream=True),
        "grpc": Asking(deployment.url("grpc"), stream=True),
        "whole": Asking(deployment.url("http"), stream=False),
    }
    wait(lambda: all(client.answers for client in clients.values()), 60)
    row = Row(process, name)
    victims = found(serving.pid, state.run, process)
    assert victims, process
    before = len(words(errors))
    sent = time.monotonic()
    for pid in victims:
        os.kill(pid, SIGNALS[name])
    limit = 10.0 if process in GUARDS else max(10.0, PROMISED_S[name])
    while time.monotonic() - sent < limit and serving.poll() is None:
        if row.noticed_s is None and len(words(errors)) > before:
            row.noticed_s = time.monotonic() - sent
        time.sleep(LOOK_S)
    if row.noticed_s is not None:  # it drains, or checks a second time
        wait(lambda: serving.poll() is not None, 60, may_fail=True)
    if goes_on := serving.poll() is None:
        now = janitors(state.run)
        row.said = goes_on_as(clients, serving.pid, config)
        if process == "janitor":
            row.said = f"{'the same one runs' if now == victims else 'replaced'}; {row.said}"
    else:
        wait(lambda: not left(state.run), 20, may_fail=True)
        row.ended_s = time.monotonic() - sent
        if row.noticed_s is None:
            row.noticed_s = row.ended_s
    row.code, row.left = serving.wait(), left(state.run)
    if not goes_on:
        row.said = (words(errors)[before:] or [""])[-1]
        for pid in victims:
            row.said = re.sub(rf"\b{pid}\b", "N", row.said)
    for client in clients.values():
        client.done.set()
        client.join(20)
    row.seen = {kind: client.outcome or "whole answers" for kind, client in clients.items()}
    for pid in victims:  # only a suspended one that nobody ended is still there
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)
    return row


def goes_on_as(clients: dict[str, Asking], supervisor: int, config: Path) -> str:
    """Whether it still serves; then it is stopped."""
    before = [client.answers for client in clients.values()]
    time.sleep(3)
    serves = all(client.answers > count for client, count in zip(clients.values(), before, strict=True))
    for client in clients.values():
        client.done.set()
    for client in clients.values():
        client.join(20)
    asked = time.monotonic()
    stop = [sys.executable, "-m", "toolkit", "stop", str(config)]
    said = subprocess.run(stop, capture_output=True, text=True, timeout=120)
    text = " ".join((said.stderr + said.stdout).replace(str(supervisor), "N").split())
    return f"{'serves on' if serves else HANGS}; `toolkit stop` took {time.monotonic() - asked:.1f} s: {text}"


def words(errors: Path) -> list[str]:
    """What the supervisor itself has said, without its ranks' lines."""
    lines = errors.read_text(errors="replace").splitlines()
    return [re.sub(r"/\S+/", "", line) for line in lines if not re.match(r"(rank \d+|mpirun) \|", line)]


def found(supervisor: int, run: ServerRun, process: str) -> list[int]:
    """The pids of a process of that name: of a model with several instances, all."""
    if process == "supervisor":
        return [supervisor]
    if process == "janitor":
        return janitors(run)
    name, _, rank = process.partition(" of rank ")
    return [member.pid for member in members(run) if is_it(member, name, int(rank) if rank else 0)]


def is_it(member: Member, name: str, rank: int) -> bool:
    if name == "mpirun":
        return member.rank is None and Path(member.command[0]).name in ("mpirun", "prterun")  # its name in Open MPI 5
    if name == "tritonserver":
        return member.rank == rank and member.server
    return member.rank == rank and member.model == name


def janitors(run: ServerRun) -> list[int]:
    pids = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if run.id.encode() in command and any(part.endswith(b"janitor.py") for part in command):
                pids.append(int(folder.name))
    return pids


def left(run: ServerRun) -> list[str]:
    """What is left of a run."""
    names = [f"process {member.pid} {Path(member.command[0]).name}" for member in members(run)]
    names += [f"janitor {pid}" for pid in janitors(run)]
    names += [str(path) for path in (*run.segments(), run.tmp) if path.exists()]
    return names


def wait(condition: Callable[[], bool], limit_s: float, may_fail: bool = False) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            if may_fail:
                return
            raise SystemExit(f"not within {limit_s:g} s")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
