"""What lint calls an error of starting, a real Triton does not load; what it has nothing against, Triton loads.

All in one repository and one Triton: what one model lacks is no other's affair.
"""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.ports import free_ports
from toolkit.lint import lint
from toolkit.serve.tritonserver import find_tritonserver

STUB = """import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args): pass
    def execute(self, requests): return [pb_utils.InferenceResponse([]) for request in requests]
"""
GOOD = """backend: "python"
max_batch_size: 4
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
SCHEDULE = """ensemble_scheduling { step [
  { model_name: "good" model_version: -1 input_map { key: "IN" value: "MID" } output_map { key: "OUT" value: "END" } },
  { model_name: "good" model_version: -1 input_map { key: "IN" value: "START" } output_map { key: "OUT" value: "MID" } }
] }
"""
CHAIN = (
    """platform: "ensemble"
max_batch_size: 4
input [ { name: "START" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "END" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
    + SCHEDULE
)
"""Its second step comes first: Triton has no order of them."""

# What is changed, and whether Triton loads it. The name of each is the kind that lint finds, or `fine`.
PYTHON = {
    "fine": ("", ""),
    "fine-without-backend": ('backend: "python"\n', ""),
    "fine-without-group": (r"instance_group .*", ""),
    "fine-own-key": (r"\Z", 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "yes" } }'),
    "backend": ('"python"', '"pyton"'),
    "batch-size": (r"\Z", "dynamic_batching { preferred_batch_size: [ 8 ] }"),
    "placeholder": ("max_batch_size: 4", "max_batch_size: ${batch}"),
    "syntax": ("max_batch_size: 4", "max_batch_sise: 4"),
    "tensor-config": (r" dims: \[ 1 \]", ""),
    "tensor-config-of-no-type": (r" data_type: TYPE_INT32", ""),
    "tensor-config-of-no-size": (r"dims: \[ 1 \]", "dims: [ 0 ]"),
    "instance-kind": ("kind: KIND_CPU", "kind: KIND_CPU gpus: [ 0 ]"),
    "fine-without-kind": (" kind: KIND_CPU", ""),
    "fine-without-batches": ("max_batch_size: 4", ""),
    "batch-size-of-less-than-0": ("max_batch_size: 4", "max_batch_size: -1"),
    "batch-size-of-nothing": (r"\Z", "dynamic_batching { preferred_batch_size: [ 0 ] }"),
    "version-directory-of-a-policy": (r"\Z", "version_policy { specific { versions: [ 3 ] } }"),
    "name": (r"\A", 'name: "another"\n'),
}
ENSEMBLES = {
    "fine-chain": ("", ""),
    "fine-policy": (r"\Z", "model_transaction_policy { decoupled: true }"),
    "fine-any-size": (r"dims: \[ 1 \]", "dims: [ -1 ]"),
    "step-model": ('model_name: "good"', 'model_name: "none"'),
    "step-input": ('key: "IN"', 'key: "INPUT"'),
    "step-output": ('key: "OUT"', 'key: "OUTPUT"'),
    "step-source": ('value: "MID" }', 'value: "MIDDLE" }'),
    "ensemble-output": ('name: "END"', 'name: "LAST"'),
    "ensemble-type": ('"START" data_type: TYPE_INT32', '"START" data_type: TYPE_INT64'),
    "ensemble-shape": (r'"START" data_type: TYPE_INT32 dims: \[ 1', '"START" data_type: TYPE_INT32 dims: [ 3'),
    "ensemble-unused": (r"input \[ ", 'input [ { name: "MORE" data_type: TYPE_INT32 dims: [ 1 ] }, '),
    "ensemble-section": (r"\Z", "instance_group [ { count: 1 kind: KIND_CPU } ]"),
    "batch-size-of-a-step": ("max_batch_size: 4", "max_batch_size: 8"),
}


def write(repository: Path) -> None:
    models = {name: (GOOD, change) for name, change in PYTHON.items()}
    models |= {name: (CHAIN, change) for name, change in ENSEMBLES.items()}
    models |= {"good": (GOOD, ("", "")), "version-directory": (GOOD, ("", ""))}
    for name, (text, (old, new)) in models.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(re.sub(old, new, text, count=1) if old else text)
        if text is GOOD:
            (repository / name / "1" / "model.py").write_text(STUB)
    (repository / "version-directory" / "1" / "model.py").unlink()
    (repository / "version-directory" / "1").rmdir()


def loaded(repository: Path, log: Path) -> set[str]:
    """The models that a Triton of its own has ready."""
    server, ports = find_tritonserver(), free_ports()
    names = ("--http-port", "--grpc-port", "--metrics-port")
    command = [str(server.binary), f"--model-repository={repository}", "--exit-on-error=false"]
    command += [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += [f"--backend-config=python,shm-region-prefix-name=lint{ports[0]}"]
    if server.backend_directory:
        command.append(f"--backend-directory={server.backend_directory}")
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=server.environ())
    try:
        deadline = time.monotonic() + 300
        while "Started GRPCInferenceService" not in log.read_text() and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(60)
    return set(re.findall(r"^\| (\S+) +\| 1 +\| READY", log.read_text(), re.MULTILINE))


@pytest.mark.slow
def test_what_lint_says_of_starting_triton_says_too(tmp_path):
    repository = tmp_path / "repository"
    write(repository)
    ready = loaded(repository, tmp_path / "log")
    found = [one for one in lint(repository) if one.kind not in ("executor", "parameter-unknown")]
    blamed = {one.path.relative_to(repository).parts[0] for one in found if one.effect == "start"}
    names = {path.name for path in repository.iterdir()}
    assert names - ready == blamed
    assert {name for name in names if name.startswith(("fine", "good"))} == names - blamed
    for name in blamed:
        kinds = {one.kind for one in found if one.path.relative_to(repository).parts[0] == name}
        assert name.partition("-of-")[0] in kinds, (name, kinds)
