"""`toolkit build` with engine: tensorrt, from the YAML to locked engines, around a double of trtllm-build."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.engine import trtllm_build_double as double
from toolkit.config.deployment import Deployment
from toolkit.engine import build, plan_build
from toolkit.engine import run as run_plan
from toolkit.engine.tensorrt.build import log_file
from toolkit.engine.tensorrt.run import run
from toolkit.errors import ToolkitError
from toolkit.files.artifacts import read_lock
from toolkit.files.file_lock import file_lock
from toolkit.runtime import Wrapped
from toolkit.runtime.needs import Part

ROOT = Path(__file__).parents[2]


def built(deployment: Deployment) -> bool:
    return build(deployment)


def failure(deployment: Deployment) -> str:
    with pytest.raises(ToolkitError) as caught:
        built(deployment)
    assert "\n" not in str(caught.value)
    assert not deployment.engine_dir.exists()
    return str(caught.value)


def test_engines_are_built_and_locked_to_what_they_were_made_from(make, program):
    deployment, told = make(), []
    assert build(deployment, lambda done, total: told.append((done, total)))
    names = {path.name for path in deployment.engine_dir.iterdir()}
    assert names == {"config.json", "lock.json", *(f"rank{rank}.engine" for rank in range(4))}
    for rank in range(4):
        wanted = double.HEADER + (deployment.checkpoint_dir / f"rank{rank}.safetensors").read_bytes()
        assert (deployment.engine_dir / f"rank{rank}.engine").read_bytes() == wanted
    lock = read_lock(deployment.engine_dir)
    assert lock.settings["max_batch_size"] == 4 and lock.settings["flags"]["max_batch_size"] == "4"
    assert lock.settings["flags"]["multiple_profiles"] == "enable" and lock.versions["engine"] == "1.2.1"
    assert told[0] == (0, 4) and told[-1] == (4, 4) and told == sorted(told)
    assert "Total time of building all engines" in log_file(deployment).read_text()
    assert not deployment.engine_dir.with_name("engine.building").exists()
    assert (deployment.output / "timing-1.2.1-h100-sxm.cache").read_text() == "timings"


def test_what_is_current_is_not_built_again(make, program):
    assert built(make())
    plan = plan_build(make())
    program.unlink()
    assert not run_plan(plan)


def test_another_flag_or_checkpoint_is_another_engine(make, program):
    assert built(make())
    assert built(make({"extra": {"multiple_profiles": "disable"}}))
    assert built(make({"extra": {"multiple_profiles": "disable"}}, limits={"max_sequences": 16, "max_seq_len": 256}))


def test_one_worker_builds_rank_after_rank(make, program, monkeypatch):
    monkeypatch.setenv("DOUBLE", "merged")  # lines of ranks that write at once have run into each other
    assert built(make({"workers": 1}))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("oom:3", "host memory runs out"),
        ("cuda:1", "a GPU has too little free memory"),
        ("sm:1", "no kernels for this GPU"),
        ("disk:2", "the disk is full"),
        ("killed", "was killed, as the kernel does when host memory runs out"),
    ],
)
def test_known_failures_are_explained(make, program, monkeypatch, fault, says):
    monkeypatch.setenv("DOUBLE", fault)
    text = failure(make())
    assert says in text and "build.log: trtllm-build: " in text


def test_ranks_that_were_built_are_kept_and_the_others_built(make, program, monkeypatch):
    """Rank 3 fails; the next build has only that left, and says so by what it starts with."""
    monkeypatch.setenv("DOUBLE", "cuda:3")
    assert "(3 of 4 ranks are kept)" in failure(make())
    monkeypatch.delenv("DOUBLE")
    before = {rank: (make().output / "engine.building" / f"rank{rank}.engine").stat().st_ino for rank in range(3)}
    told = []
    assert build(make(), lambda done, total: told.append(done))
    assert min(told) == 3
    engine = make().engine_dir
    assert {rank: (engine / f"rank{rank}.engine").stat().st_ino for rank in range(3)} == before
    assert sorted(path.name for path in engine.glob("*.engine")) == [f"rank{rank}.engine" for rank in range(4)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_goes_on_and_keeps_no_half_written_rank(make, program, monkeypatch, number):
    deployment = make()
    monkeypatch.setenv("DOUBLE", "half:2")
    command = [sys.executable, "-c", BUILD.format(file=str(deployment.file))]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    work = deployment.output / "engine.building"
    wait_for(lambda: (work / "rank2.engine").exists() and (work / "rank3.engine").exists())
    time.sleep(1.2)  # it has been noticed that all but rank 2 are whole, or not: both must be right
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    running.communicate(timeout=30)
    if number == signal.SIGKILL:  # nobody was left to end its program, which would write into what comes next
        builder = children[0].pid
        says = f"{deployment.output}: is being built by process {builder}. Wait for it, or end it: kill -- -{builder}"
        assert failure(deployment) == says
        os.killpg(builder, signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() for child in children))
    monkeypatch.delenv("DOUBLE")
    assert built(make())
    for rank in range(4):
        wanted = double.HEADER + (deployment.checkpoint_dir / f"rank{rank}.safetensors").read_bytes()
        assert (deployment.engine_dir / f"rank{rank}.engine").read_bytes() == wanted


def test_two_builds_at_once_are_refused(make, program):
    deployment = make()
    with file_lock(deployment.output / "build.lock", "is being built by"):
        assert f"is being built by process {os.getpid()}. Wait for it, or end it: kill -- " in failure(deployment)


BUILD = """
from toolkit.config.load import load_deployment
from toolkit.engine import build
build(load_deployment({file!r}))
"""


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


HANGS = Wrapped((Part(("sh", "-c", "echo begun; sleep 3600 & sleep 3600"), ""),))


def test_a_builder_that_hangs_is_ended(make, program, monkeypatch, tmp_path):
    begin = time.monotonic()
    with pytest.raises(ToolkitError, match=r"printed and wrote nothing for 0 minutes, so it was ended"):
        run(HANGS, tmp_path, tmp_path / "log", lambda log: None, stall_s=2.0)
    assert time.monotonic() - begin < 120


def test_another_version_is_ended_at_its_first_line(make, program, monkeypatch):
    monkeypatch.setenv("DOUBLE_VERSION", "1.1.0")
    assert "engine.version: says 1.2.1, but trtllm-build is TensorRT-LLM 1.1.0" in failure(make())


def test_without_the_program_it_names_the_image(make):
    assert "trtllm-build is not here. Run this inside nvcr.io/nvidia/tritonserver:26.07-trtllm" in failure(make())


def test_a_version_that_is_not_known_is_refused(make):
    with pytest.raises(ToolkitError, match=r"engine.version: TensorRT-LLM '0.9.0' is not supported. Use one of 0.20"):
        make({"version": "0.9.0"})


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"max_batch_size": 64}, "64 contradicts 4, which comes from: limits.max_sequences 8 / (pp 2)"),
        ({"tp_size": 2}, "engine.extra.tp_size: unknown flag of trtllm-build in TensorRT-LLM 1.2"),
        ({"multiple_profile": "enable"}, "Did you mean multiple_profiles"),
        ({"multiple_profiles": "yes"}, "engine.extra.multiple_profiles: "),
        ({"strip_plan": "yes"}, "takes no value"),
        ({"opt_num_tokens": 64}, "cannot go with multiple_profiles"),
        ({"user_buffer": True}, "works only with reduce_fusion"),
        ({"nccl_plugin": "disable"}, "leaves the ranks without messages"),
        ({"gpt_attention_plugin": "disable"}, "in-flight batching needs it"),
        ({"context_fmha": False}, "paged context attention needs it"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_runs(make, program, extra, says):
    text = failure(make({"extra": extra}))
    assert says in text and "engine.extra." in text
    assert not log_file(make()).exists()


def test_what_is_wrong_in_the_yaml_comes_before_what_the_machine_lacks(make):
    with pytest.raises(ToolkitError, match=r"engine.extra.tp_size: unknown flag"):
        plan_build(make({"extra": {"tp_size": 2}}))
    with pytest.raises(ToolkitError, match=r"trtllm-build is not here"):
        plan_build(make())


def test_reduce_fusion_needs_tensor_parallelism(make, program):
    assert "tp 1 has none" in failure(make({"extra": {"reduce_fusion": True}}, parallel={"tp": 1, "pp": 2}))


def test_true_is_enable(make, program):
    deployment = make({"extra": {"reduce_fusion": True, "strip_plan": True}})
    assert built(deployment)
    flags = read_lock(deployment.engine_dir).settings["flags"]
    assert flags["reduce_fusion"] == "enable" and flags["strip_plan"] is None
    assert json.loads((deployment.engine_dir / "config.json").read_text())["version"] == "1.2.1"


DOCKER = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
if arguments[0] == "info":
    print(json.dumps({{"ServerVersion": "28.2", "Runtimes": {{"nvidia": {{}}}}}}))
elif arguments[:2] == ["container", "inspect"]:
    sys.exit(1)
elif arguments[0] == "run":
    open({log!r}, "w").write(json.dumps(arguments))
    inside = arguments[arguments.index("trtllm-build") + 1 :]
    os.execv(sys.executable, [sys.executable, "-m", "tests.engine.trtllm_build_double", *inside])
"""


def test_with_runtime_docker_it_builds_in_the_image(make, tmp_path, monkeypatch):
    """A docker that only strips its own arguments: paths are the same inside, so the engines are where they belong."""
    folder, log = tmp_path / "docker", tmp_path / "docker.log"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER.format(python=sys.executable, log=str(log)))
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    deployment = make(runtime="docker")
    assert built(deployment)
    assert len(list(deployment.engine_dir.glob("rank*.engine"))) == 4
    arguments = json.loads(log.read_text())
    text = " ".join(arguments)
    assert "--gpus" in text and "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3" in arguments
    assert "toolkit-trial-build" in text and str(deployment.output) in text


def test_an_output_that_cannot_be_written_is_one_line(make, program):
    deployment = make()
    (deployment.output / "engine.building").write_text("in the way")
    assert "engine.building: cannot be written: File exists" in failure(deployment)
