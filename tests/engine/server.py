"""A tritonserver with only the tensorrt_llm model of a repository."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

from tests.ports import free_ports
from toolkit.serve import tritonserver

PROMPT = [5, 6, 7, 8, 9, 10]


class Server:
    def __init__(self, repository, folder, options=()):
        found = tritonserver.find_tritonserver()
        self.http, self.grpc, self.metrics_port = free_ports()
        self.log = folder / "triton.log"
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics_port}
        command = [str(found.binary), f"--model-repository={repository}", "--disable-auto-complete-config"]
        command += [f"--{name}-address=127.0.0.1" for name in ports] + [
            f"--{name}-port={ports[name]}" for name in ports
        ]
        command += [f"--backend-directory={found.backend_directory}"] if found.backend_directory else []
        command += ["--model-control-mode=explicit", "--load-model=tensorrt_llm", "--exit-timeout-secs=20"]
        command += [f"--backend-config=python,shm-region-prefix-name=engine{os.getpid()}_{self.http}_"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=found.environ(), stdout=log, stderr=log)

    def wait_ready(self):
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url("health/ready"), timeout=5):
                self.metrics()  # whose port opens a moment later
                return self
            time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-4000:])

    def url(self, path):
        return f"http://127.0.0.1:{self.http}/v2/{path}"

    def post(self, stream=False, **inputs):
        """(status, JSON) of generate; (status, list of JSON) of generate_stream."""
        body = {
            "input_ids": PROMPT,
            "input_lengths": len(inputs.get("input_ids", PROMPT)),
            "streaming": stream,
            **inputs,
        }
        url = self.url(f"models/tensorrt_llm/generate{'_stream' * stream}")
        try:
            with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read().decode().removeprefix("data: "))
        return 200, [json.loads(line[6:]) for line in text.splitlines() if line] if stream else json.loads(text)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def steps(self):
        """How many steps the engine has scheduled."""
        return self.metrics()[
            'nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm",version="1"}'
        ]

    def wait_for(self, metric, value, timeout_s=10):
        deadline = time.monotonic() + timeout_s
        while self.metrics()[metric] != value:
            assert time.monotonic() < deadline, self.metrics()
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
