"""A real Triton that serves the generated repository, with a scripted `tensorrt_llm` in place of the engine."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from tests.ports import free_ports
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.files import artifacts
from toolkit.repository import generate
from toolkit.repository.generate import SOURCES
from toolkit.serve import tritonserver

SCRIPTED = Path(__file__).parent / "scripted_tensorrt_llm" / "model.py"
YAML = """
engine: {engine}
name: test
model: {{path: {model}}}
limits: {{max_sequences: 8, max_num_tokens: 256, max_seq_len: 512, max_queue_size: 8}}
kv_cache: {{max_tokens: 8192}}
serving: {{decoupled: {decoupled}}}
output: {output}
"""


@dataclass
class Server:
    http: int
    grpc: int
    record: Path
    log: Path
    pid: int
    metrics: int = 0

    def post(self, model: str, body: dict, stream: bool = False) -> tuple[int, str]:
        """(status, body) of generate or generate_stream."""
        url = f"http://127.0.0.1:{self.http}/v2/models/{model}/generate{'_stream' if stream else ''}"
        return self.post_bytes(url, json.dumps(body).encode())

    def post_bytes(self, url: str, body: bytes) -> tuple[int, str]:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def events(self, model: str, body: dict) -> list[dict]:
        """The events of generate_stream, `stream` set."""
        status, text = self.post(model, {"stream": True, **body}, stream=True)
        assert status == 200, text
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]

    def stream(self, model: str, body: dict) -> Iterator[dict]:
        """The same, each as it comes."""
        data = json.dumps({"stream": True, **body}).encode()
        url = f"http://127.0.0.1:{self.http}/v2/models/{model}/generate_stream"
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            yield from (json.loads(line.removeprefix(b"data: ")) for line in answer if line.strip())

    @contextmanager
    def next_record(self, within_s: float = 20.0) -> Iterator[dict]:
        """What the scripted engine records of the one request in the block; filled in when the block ends."""
        found: dict = {}
        before = len(self.records())
        yield found
        found.update(self.records(before + 1, within_s)[before])

    def records(self, count: int = 0, within_s: float = 20.0) -> list[dict]:
        """What the scripted engine has recorded, as soon as these are so many."""
        end = time.monotonic() + within_s
        while len(lines := self.record.read_text().splitlines()) < count:
            assert time.monotonic() < end, f"{count} texts did not end within {within_s} s"
            time.sleep(0.02)
        return [json.loads(line) for line in lines]


def built_deployment(folder: Path, model: Path, engine: str = "tensorrt", decoupled: bool = True) -> Deployment:
    """A deployment of `model` whose engine directory looks built."""
    file = folder / "deployment.yaml"
    text = YAML.format(engine=engine, model=model, output=folder / "work", decoupled=str(decoupled).lower())
    file.write_text(text)
    deployment = load_deployment(file)
    artifacts.write_stage(
        deployment.engine_dir,
        "engine",
        inputs={},
        settings={"engine": engine, "max_batch_size": 8, "max_num_tokens": 256, "max_seq_len": 512},
        versions={},
        write=lambda directory: directory.joinpath("config.json").touch(),
    )
    return deployment


def scripted_repository(folder: Path, model: Path, decoupled: bool = True) -> Path:
    """The repository of engine: tensorrt, with a Python model where NVIDIA's backend would be."""
    deployment = built_deployment(folder, model, decoupled=decoupled)
    generate(deployment)
    repository = folder / "repository"
    shutil.copytree(deployment.repository_dir, repository)
    path = repository / "tensorrt_llm" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.backend = "python"
    # NVIDIA's backend empties Triton's queue at once, a Python model batch after batch.
    config.dynamic_batching.default_queue_policy.max_queue_size += config.max_batch_size
    config.parameters["record"].string_value = str(folder / "record.jsonl")
    path.write_text(text_format.MessageToString(config))
    for source in (SCRIPTED, SOURCES / "shared" / "server_process.py"):
        shutil.copy(source, repository / "tensorrt_llm" / "1")
    (folder / "record.jsonl").touch()
    return repository


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[Server]:
    """A tritonserver of the repository, ready, and gone when the block ends."""
    found = tritonserver.find_tritonserver()
    http, grpc, metrics = free_ports()
    log = folder / "triton.log"
    command = [str(found.binary), f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += [f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    command += [f"--backend-directory={found.backend_directory}", "--disable-auto-complete-config", "--log-verbose=0"]
    # An error inside an ensemble's stream leaves Triton counting an inference for ever, hence the timeout.
    region = f"test{os.getpid()}_{http}_"
    command += [f"--backend-config=python,shm-region-prefix-name={region}", "--exit-timeout-secs=3"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=found.environ(), stdout=output, stderr=output)
    try:
        _wait_until_ready(http, process, log)
        yield Server(http, grpc, folder / "record.jsonl", log, process.pid, metrics)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in Path("/dev/shm").glob(f"{region}*"):
            left.unlink(missing_ok=True)


def _wait_until_ready(port: int, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
        time.sleep(0.1)
    raise AssertionError(f"tritonserver is not ready:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("triton")
    with serving(scripted_repository(folder, tiny_llama), folder) as running:
        yield running


@pytest.fixture(scope="session")
def unary_server(tmp_path_factory, tiny_llama):
    """The same with serving.decoupled: false."""
    folder = tmp_path_factory.mktemp("unary")
    with serving(scripted_repository(folder, tiny_llama, decoupled=False), folder) as running:
        yield running
