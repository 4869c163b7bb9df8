"""Host, programs and places against a deployment: pure functions of what was seen."""

import os
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from tests.doctor.conftest import HOST, PLACES, PROGRAMS, checks_of, problems
from tests.doctor.fake_nvml import GIB, FakeNvml, h100s
from toolkit.config.deployment import with_settings
from toolkit.doctor.paths import Disk, Model, Port, look_at_places
from toolkit.doctor.programs import Program
from toolkit.files.distribution import install
from toolkit.serve.state import exclusive

NOWHERE = Program(None, problem="there is none", fix="Run: pip install it")


@pytest.fixture
def laptop(node):
    """A machine without a GPU; the parts given replace those of a large one."""

    def make(**parts):
        no_driver = FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})
        return node(no_driver, **{"places": replace(PLACES, made=()), **parts})

    return make


def test_a_rehearsal_needs_no_gpu_and_no_tensorrt(laptop, rehearsal):
    programs = replace(PROGRAMS, backends=("python",), packages={"torch": "2.9.0"})
    assert problems(laptop(programs=programs), rehearsal) == []
    assert problems(laptop(programs=programs, places=None), None) == []


def test_torch_is_needed_to_rehearse_and_to_convert(laptop, node, rehearsal, flagship):
    without = replace(PROGRAMS, packages={})
    for deployment in (rehearsal, None):
        found = checks_of(laptop(programs=without), deployment)["packages"]
        assert (found.status, found.needed, found.fix) == ("error", "torch", f"Run: {install('rehearsal')}")
    found = checks_of(node(h100s(), programs=without), flagship)["packages"]
    assert (found.status, found.needed, found.fix) == ("warning", "torch, to convert", f"Run: {install('convert')}")


def test_fewer_cores_than_ranks_are_slow(laptop, rehearsal):
    found = checks_of(laptop(host=replace(HOST, cores=2, usable_cores=2.0)), rehearsal)["cores"]
    assert (found.status, found.found, found.needed) == ("warning", "2", "8, one for each rank")


def test_both_figures_where_a_limit_is_in_force(laptop, rehearsal):
    host = replace(HOST, usable_cores=1.5, memory_limit_bytes=4 * GIB, available_bytes=3 * GIB)
    found = checks_of(laptop(host=host), rehearsal)
    assert found["cores"].found == "1.5 of the machine's 224 (affinity, or a container's limit)"
    limit = "3.0 GiB available of 4.0 GiB, a container's or service's limit; the machine has 2000.0 GiB"
    assert (found["memory"].status, found["memory"].found) == ("ok", limit)


def test_too_little_memory_for_the_ranks(laptop, rehearsal):
    machine = laptop(host=replace(HOST, available_bytes=2 * GIB))
    found = checks_of(machine, rehearsal)["memory"]
    assert (found.status, found.needed) == ("error", "2.4 GiB for 8 ranks")
    assert checks_of(machine, None)["memory"].status == "warning", "who knows what will be rehearsed"
    running = replace(machine, places=replace(PLACES, running=99))
    assert checks_of(running, rehearsal)["memory"].status == "ok", "it has its memory already"


def test_the_node_has_what_hardware_says(node, flagship):
    host = replace(HOST, usable_cores=127.0, memory_bytes=int(255e9))
    found = checks_of(node(h100s(), host=host), flagship)
    assert (found["cores"].status, found["cores"].needed) == ("warning", "128 = 8 GPUs x 16 (hardware.cores_per_gpu)")
    assert found["memory"].status == "error"
    limited = replace(HOST, memory_limit_bytes=int(200e9))
    assert checks_of(node(h100s(), host=limited), flagship)["memory"].status == "error"
    enough = replace(HOST, memory_bytes=int(257e9), available_bytes=GIB)
    assert checks_of(node(h100s(), host=enough), flagship)["memory"].status == "ok"


@pytest.mark.parametrize("size, status", [(GIB - 1, "error"), (GIB, "ok")])
def test_shared_memory(node, flagship, size, status):
    found = checks_of(node(h100s(), host=replace(HOST, shm_free_bytes=size)), flagship)["/dev/shm"]
    assert (found.status, found.needed) == (status, "1.0 GiB")


def test_a_running_deployment_has_its_shared_memory_already(laptop, rehearsal):
    machine = laptop(host=replace(HOST, shm_free_bytes=5), places=replace(PLACES, running=99))
    assert checks_of(machine, rehearsal)["/dev/shm"].status == "ok"


def test_no_shared_memory_at_all(laptop, rehearsal):
    found = checks_of(laptop(host=replace(HOST, shm_bytes=0, shm_free_bytes=0)), rehearsal)["/dev/shm"]
    assert (found.status, found.found) == ("error", "is not mounted")


def test_missing_programs_are_errors_with_their_fix(laptop, rehearsal):
    machine = laptop(programs=replace(PROGRAMS, mpirun=NOWHERE, tritonserver=NOWHERE))
    assert problems(machine, rehearsal) == [("error", "tritonserver"), ("error", "mpirun")]
    assert checks_of(machine, rehearsal)["mpirun"].fix == "Run: pip install it"


def test_in_a_container_a_rehearsal_has_the_programs_of_this_machine(laptop, rehearsal):
    programs = replace(PROGRAMS, mpirun=NOWHERE, tritonserver=NOWHERE, container=Program(Path("/usr/bin/docker")))
    in_docker = with_settings(rehearsal, runtime={"kind": "docker"})
    assert problems(laptop(programs=programs), in_docker) == [("error", "tritonserver"), ("error", "mpirun")]


def test_on_the_host_the_image_has_what_is_missing(node, flagship):
    programs = replace(PROGRAMS, mpirun=NOWHERE, tritonserver=NOWHERE, docker=Path("/usr/bin/docker"))
    machine = node(h100s(), programs=programs)
    assert problems(machine, flagship) == [("warning", "tritonserver"), ("warning", "mpirun")]
    assert "docker run --gpus all" in checks_of(machine, flagship)["tritonserver"].fix
    without = replace(machine, programs=replace(programs, docker=None))
    assert problems(without, flagship) == [("error", "tritonserver"), ("error", "mpirun")]


def test_a_server_without_the_backend(node, flagship):
    found = checks_of(node(h100s(), programs=replace(PROGRAMS, backends=("python",))), flagship)["backends"]
    assert (found.status, found.found, found.needed) == ("error", "python", "tensorrtllm")


@pytest.mark.parametrize("version, status", [("1.2.1", "ok"), ("1.2.10", "error"), ("0.20.0", "error")])
def test_the_version_of_tensorrt_llm(node, flagship, version, status):
    programs = replace(PROGRAMS, packages={"tensorrt-llm": version})
    assert checks_of(node(h100s(), programs=programs), flagship)["tensorrt-llm"].status == status


def test_a_model_that_cannot_be_used(node, flagship):
    places = replace(PLACES, model=Model(Path("/models/x"), "holds no *.safetensors", "Download the weights."))
    found = checks_of(node(h100s(), places=places), flagship)["model"]
    assert (found.status, found.found) == ("error", "/models/x: holds no *.safetensors")


def test_disks(node, flagship):
    to_come = {"checkpoint": 100_000_000_000, "engines": 50_000_000_000}
    for free, status in ((149_000_000_000, "error"), (150_000_000_000, "ok")):
        places = replace(PLACES, disks=(Disk(Path("/data"), True, free, to_come),))
        found = checks_of(node(h100s(), places=places), flagship)["disk"]
        assert (found.status, found.needed) == (status, "150.0 GB = 100.0 GB checkpoint + 50.0 GB engines")
    places = replace(PLACES, disks=(Disk(Path("/data"), False, free, to_come),))
    assert checks_of(node(h100s(), places=places), flagship)["disk"].found == "/data cannot be written"


def test_ports(node, flagship):
    taken = Port("grpc_port", "127.0.0.1:8001", "cannot listen on 127.0.0.1:8001: taken by process 5 (x)", "Stop it.")
    places = replace(PLACES, ports=(*PLACES.ports, taken))
    found = checks_of(node(h100s(), places=places), flagship)
    assert (found["grpc_port"].status, found["grpc_port"].found) == ("error", taken.problem)
    assert found["ports"].found == "127.0.0.1:8000: free"
    ours = checks_of(node(h100s(), places=replace(places, running=4711)), flagship)["ports"]
    assert (ours.status, ours.found) == (
        "ok",
        "127.0.0.1:8000, 127.0.0.1:8001: this deployment is running (process 4711)",
    )


def test_engines_from_elsewhere_are_needed_for_what_is_not_built_here(node, flagship, rehearsal):
    machine = node(h100s(), places=replace(PLACES, made=()))
    assert problems(machine, flagship) == [("warning", "engines")]
    assert "engines" not in checks_of(machine, rehearsal)


def test_every_replica_has_ports(rehearsal, tmp_path):
    update = {"output": tmp_path}
    deployment = with_settings(rehearsal, parallel={"tp": 2, "pp": 1, "replicas": 2}).model_copy(update=update)
    places = look_at_places(deployment)
    http_port = deployment.serving.http_port
    assert [port.name for port in places.ports] == ["http_port", "grpc_port", "metrics_port"] * 2
    assert places.ports[3].address == f"127.0.0.1:{http_port + 10}"
    assert places.running is None
    with exclusive(deployment.per_replica()[1]):
        assert look_at_places(deployment).running == os.getpid()


def test_cores_and_memory_of_all_replicas(laptop, rehearsal):
    host = replace(HOST, usable_cores=6)
    deployment = with_settings(rehearsal, parallel={"tp": 2, "pp": 2, "replicas": 2})
    found = checks_of(laptop(host=host), deployment)
    assert (found["cores"].status, found["cores"].needed) == ("warning", "8, one for each rank")
    assert found["memory"].needed.endswith("for 8 ranks")
