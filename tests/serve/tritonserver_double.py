"""Stands in for tritonserver with TensorRT-LLM's backend, and by its other name for the backend's worker.

It takes the options that the toolkit gives and no others, and the GPU that the backend would take. It computes nothing.
"""

import ctypes
import json
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORKER = "trtllmExecutorWorker"
KNOWN = re.compile(
    r"--(model-repository=/.+|model-control-mode=explicit|load-model=tensorrt_llm"
    r"|(http|grpc|metrics)-(address=127\.0\.0\.1|port=\d+)|exit-timeout-secs=\d+|disable-auto-complete-config"
    r"|backend-config=python,shm-region-prefix-name=toolkit-\w+-\d+-"
    r"|pinned-memory-pool-byte-size=0|enable-peer-access=false|cuda-memory-pool-byte-size=\d+:0)"
)
RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
ENDED = threading.Event()
active = 0


def say(text):
    print(text, file=sys.stderr, flush=True)


def mpi():
    """Open MPI's library, which the real ones are linked to."""
    prefix = Path(sysconfig.get_path("scripts")).parent
    library = ctypes.CDLL(str(prefix / "lib" / "libmpi.so.40"), mode=ctypes.RTLD_GLOBAL)
    library.MPI_Init(None, None)
    return library


def tell_gpu():
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    container_gpus = os.environ.get("NVIDIA_VISIBLE_DEVICES", "all")
    say(f"on GPU number {RANK} of {visible} in {os.environ.get('CUDA_DEVICE_ORDER')}, given {container_gpus}")


def engine_of(repository):
    config = (repository / "tensorrt_llm" / "config.pbtxt").read_text()
    engine = Path(re.search(r'"gpt_model_path"\s*value {\s*string_value: "(.+)"', config)[1])
    return json.loads((engine / "config.json").read_text())["pretrained_config"]["mapping"]["world_size"]


def spawn(ranks):
    library = mpi()
    worker = os.fsencode(Path(sys.argv[0]).with_name(WORKER))
    null, alone = (
        ctypes.addressof(ctypes.c_char.in_dll(library, name)) for name in ("ompi_mpi_info_null", "ompi_mpi_comm_self")
    )
    others = ctypes.c_void_p()
    pointer = ctypes.c_void_p
    library.MPI_Comm_spawn(worker, None, ranks, pointer(null), 0, pointer(alone), ctypes.byref(others), None)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/metrics":
            text = f'nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="active",version="1"}} {active}\n'
        else:
            assert self.path in ("/v2/health/ready", "/v2/health/live"), self.path
            text = ""
        self.answer(text)

    def do_POST(self):
        global active
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v2/models/tensorrt_llm_bls/generate"
        active += 1
        time.sleep(0.1 * asked["max_tokens"] if asked["text_input"] == "slow" else 0)
        active -= 1
        self.answer(json.dumps({"text_output": "x" * asked["max_tokens"]}))

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


def serve(options):
    ports = [int(options[f"{name}-port"]) for name in ("http", "metrics")]
    servers = [ThreadingHTTPServer(("127.0.0.1", port), Handler) for port in ports]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ENDED.wait()
    servers[0].shutdown()
    servers[0].socket.close()
    while active:
        time.sleep(0.05)
    time.sleep(1)  # as Triton, which unloads its models


def main():
    signal.signal(signal.SIGTERM, lambda *_: ENDED.set())
    for option in sys.argv[1:]:
        if not KNOWN.fullmatch(option):
            say(f"unrecognized option '{option}'")
            return 1
    if Path(sys.argv[0]).name == WORKER:
        mpi()
        tell_gpu()
        ENDED.wait()
        return 0
    options = dict(option.removeprefix("--").partition("=")[::2] for option in sys.argv[1:])
    repository = Path(options["model-repository"])
    ranks, orchestrator = engine_of(repository), os.environ.get("TRTLLM_ORCHESTRATOR") == "1"
    assert (RANK > 0) == ("load-model" in options)
    assert orchestrator == ("enable-peer-access" in options)
    size = int(os.environ["OMPI_COMM_WORLD_SIZE"])
    assert size == (1 if orchestrator else ranks), "Communication mode kLEADER: MPI worldSize is expected to be tp*pp"
    if orchestrator:
        spawn(ranks)
    else:
        tell_gpu()
    if RANK > 0 or (repository / "hang").exists():
        ENDED.wait()
    else:
        serve(options)
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    # No finalize: as a server that is done, and whose workers mpirun ends.
    os._exit(main())
