"""engine: pytorch from the YAML to the load test: real Triton, real mpirun, with a stand-in for the LLM API.

The stand-in answers by transformers in the server's process, and starts a worker a rank by mpirun, which computes
nothing. What is checked of GPUs before a start has its own tests.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable

import pytest
import yaml

from tests.llm_api import make_repository, put_tritonserver_on_path
from tests.ports import free_ports
from tests.serve.conftest import Serving
from toolkit.client import GenerateRequest, connect
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import PORTS
from toolkit.repository import generate
from toolkit.serve import preflight

pytestmark = pytest.mark.slow


@pytest.fixture
def deployment(tmp_path, tiny_llama, monkeypatch) -> Deployment:
    """One of tp 2 x pp 2, with its repository. On PATH is a tritonserver: the wheel's, with what it needs to start."""
    put_tritonserver_on_path(tmp_path, monkeypatch)
    content = {
        "engine": "pytorch",
        "model": {"path": str(tiny_llama)},
        "parallel": {"tp": 2, "pp": 2},
        "limits": {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256},
        "serving": {**dict(zip(PORTS, free_ports(), strict=True)), "drain_timeout_s": 20},
        "loadtest": {"users": 2, "requests": 6, "warmup_requests": 0, "max_tokens": 8},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(content))
    made = load_deployment(tmp_path / "trial.yaml")
    make_repository(made)
    return made


def test_ask_load_test_drain(deployment, start: Callable[..., Serving]):
    serving = start(deployment).wait_ready()
    assert "stage 1: GPUs 2, 3 (unknown): layers 2-3" in serving.stderr
    logs = [(deployment.run_dir / f"rank{rank}.log").read_text() for rank in range(4)]
    workers = [re.findall(r"worker (\d) of GPUs (\S+)", log) for log in logs]
    mpirun = (deployment.run_dir / "mpirun.log").read_text()  # Open MPI 5 does not say whose output a worker's is
    everything = sum(workers, re.findall(r"worker (\d) of GPUs (\S+)", mpirun))
    assert sorted(everything) == [(str(rank), "0,1,2,3") for rank in range(4)]
    for protocol in ("http", "grpc"):
        with connect(deployment.url(protocol)) as client:
            assert "".join(event.text for event in client.generate_stream(GenerateRequest("The capital", 8)))
    from toolkit.load.runner import run

    verdict = run(deployment)
    assert str(verdict.outcome) == "PASS", verdict
    serving.send(signal.SIGTERM)
    assert serving.ended(30) == 0
    assert "none cut" in serving.stderr
    assert serving.left() == []


def test_the_death_of_a_worker_ends_the_group(deployment, start):
    serving = start(deployment).wait_ready()
    victim = next(m for m in serving.members() if m.rank == 2)
    os.kill(victim.pid, signal.SIGKILL)
    assert serving.ended(30) == 1
    assert "rank 2 was killed by SIGKILL" in serving.stderr or "rank 2 (process" in serving.stderr
    assert serving.left() == []


def test_a_changed_model_needs_a_new_repository(deployment, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(deployment.model.path, model)
    deployment = deployment.model_copy(update={"model": deployment.model.model_copy(update={"path": model})})
    generate(deployment)
    preflight.check_repository(deployment)
    (model / "generation_config.json").write_text('{"eos_token_id": 5}')
    with pytest.raises(Exception, match="was made from another model than the one in"):
        preflight.check_repository(deployment)
