"""A group served by the command line, and what can be asked of it over its public ports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests import commands
from tests.ports import free_ports

SHARED_MEMORY = Path("/dev/shm")
MAX_SEQUENCES = 16
MAX_SEQ_LEN = 1024
QUEUE = 48
BLOCKS = 1024
TOKENS_PER_BLOCK = 16
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")


def write_yaml(folder: Path, model: Path, tp: int, pp: int) -> Path:
    """build_configs/tiny-llama-rehearsal.yaml with another place, ports and limits."""
    http, grpc, metrics = free_ports()
    content = {
        "engine": "rehearsal",
        "model": {"path": str(model), "dtype": "float16"},
        "parallel": {"tp": tp, "pp": pp},
        "limits": {
            "max_sequences": MAX_SEQUENCES,
            "max_num_tokens": 256,
            "max_seq_len": MAX_SEQ_LEN,
            "max_queue_size": QUEUE,
        },
        "kv_cache": {"tokens_per_block": TOKENS_PER_BLOCK, "max_tokens": BLOCKS * TOKENS_PER_BLOCK},
        "hardware": {"gpu": "none", "gpus": 8},
        "serving": {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "startup_timeout_s": 120},
        "output": str(folder / "output"),
    }
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def command(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "toolkit", *name.split(), *map(str, arguments)]


def toolkit(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `toolkit NAME ARGUMENTS...` to its end."""
    return commands.toolkit(*name.split(), *arguments)


def succeed(name: str, *arguments: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = toolkit(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(condition: Callable[[], Any], what: str, within_s: float = 30) -> Any:
    """What the condition gives as soon as it gives something true."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Group:
    """Where a served deployment can be reached."""

    file: Path

    @property
    def content(self) -> dict[str, Any]:
        return yaml.safe_load(self.file.read_text())

    @property
    def run_dir(self) -> Path:
        return Path(self.content["output"]) / "run"

    @property
    def run_id(self) -> str:
        return json.loads((self.run_dir / "state.json").read_text())["run_id"]

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.content['serving']['http_port']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.content['serving']['grpc_port']}"

    def url(self, model: str, stream: bool = False) -> str:
        return f"http://{self.http}/v2/models/{model}/generate{'_stream' * stream}"

    def post(self, model: str, body: dict[str, Any] | bytes, stream: bool = False) -> tuple[int, str]:
        """(status, body) of generate or generate_stream."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url(model, stream), data)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def events(self, model: str, **inputs: Any) -> list[dict[str, Any]]:
        """The events of generate_stream, with `stream` set."""
        status, text = self.post(model, {"stream": True, **inputs}, stream=True)
        assert status == 200, text
        return events_of(text)

    def ask(self, model: str = "tensorrt_llm_bls", **inputs: Any) -> dict[str, Any]:
        """The answer of generate."""
        status, text = self.post(model, inputs)
        assert status == 200, text
        return json.loads(text)

    def metrics_text(self) -> str:
        url = f"http://127.0.0.1:{self.content['serving']['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode()

    def metric(self, family: str, value: str) -> float:
        """The sample of the family that has a label of this value."""
        found = [number for name, labels, number in samples(self.metrics_text()) if (name, value) == (family, labels)]
        assert len(found) == 1, (family, value, found)
        return float(found[0])

    def requests(self, kind: str) -> int:
        """active, scheduled, waiting, ..."""
        return int(self.metric("nv_trt_llm_request_metrics", kind))

    def blocks(self, kind: str) -> int:
        """used, free, ..."""
        return int(self.metric("nv_trt_llm_kv_cache_block_metrics", kind))

    def output_tokens(self) -> int:
        """Tokens generated since the start, of requests that have ended."""
        return int(self.metric("nv_llm_output_token_len_sum", "total_output_tokens"))

    def ended(self) -> int:
        """Sequences that have ended since the start, cancelled ones included."""
        return int(self.metric("nv_llm_output_token_len_count", "total_output_tokens"))

    def is_idle(self) -> bool:
        return not self.requests("active") and not self.blocks("used")

    def assert_well(self) -> None:
        """Nothing runs any more, no block is taken, no rank has written a traceback."""
        wait_for(self.is_idle, "idle, all blocks free")
        for log in self.run_dir.glob("rank*.log"):
            assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-4000:]


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines), text
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["text_output"] for event in events)


def samples(text: str) -> list[tuple[str, str, str]]:
    """(name, value of the label that tells samples of the family apart, number as written)."""
    found = []
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            own = [value for name, value in labels.items() if name not in ("model", "version", "le")]
            found.append((match[1], own[0] if own else "", match[3]))
    return found


def processes_of(run_id: str) -> list[psutil.Process]:
    """The processes of a run that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TOOLKIT_RUN_ID") == run_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_of(run_id: str) -> list[Any]:
    """What a run has left on the machine."""
    return [*processes_of(run_id), *SHARED_MEMORY.glob(f"*{run_id}*")]
