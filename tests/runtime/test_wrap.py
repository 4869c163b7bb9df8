"""The command lines of each kind: as they are for the flagship, and with what is awkward in them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.runtime import Needs, Part, end_by_force, script, wrap

GOLDEN = Path(__file__).parent / "golden"
KINDS = ["host", "docker", "enroot", "apptainer"]
CONTAINERS = KINDS[1:]
SECRET = "hf_abcdefghijklmnop"


def serving(deployment) -> tuple[list[str], Needs]:
    """What `toolkit serve` would ask for; its real command line is that of toolkit.serve.command."""
    ports = deployment.serving
    needs = Needs(
        reads=(deployment.repository_dir, deployment.engine_dir),
        writes=(deployment.run_dir,),
        gpus=tuple(range(8)),
        ports=(ports.http_port, ports.grpc_port, ports.metrics_port),
        environment={"TOOLKIT_RUN_ID": "1a2b3c4d", "TMPDIR": str(deployment.run_dir / "tmp")},
        secrets=("HF_TOKEN",),
        cores=(*range(64), *range(112, 176)),
        nodes=(0, 1),
        stop_s=40,
    )
    return ["mpirun", "-n", "1", "tritonserver", f"--model-repository={deployment.repository_dir}"], needs


@pytest.mark.parametrize("kind", KINDS)
def test_the_flagship_s_script(deploy, user_1000, kind):
    deployment = deploy(kind)
    text = script(deployment, *serving(deployment))
    text = text.replace(str(deployment.output), "/OUTPUT").replace(str(deployment.output.parent), "/WORK")
    text = text.replace(str(deployment.file), "FILE")
    assert text == (GOLDEN / f"{kind}.sh").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_comes_last_and_whole(deploy, kind):
    command = ["trtllm-build", "--x", "a b", 'it\'s "$HOME"', "", "*"]
    assert wrap(deploy(kind), command, Needs()).arguments[-len(command) :] == command


@pytest.mark.parametrize("kind", CONTAINERS)
def test_options_of_the_yaml_come_after_ours_and_before_the_image(deploy, kind):
    arguments = wrap(deploy({"kind": kind, "options": ["--first", "a b"]}), ["true"], Needs()).arguments
    assert arguments[-4:-2] == ["--first", "a b"] and arguments[-1] == "true"


def test_the_image_of_the_yaml(deploy):
    assert "me/mine:1" in wrap(deploy({"kind": "docker", "image": "me/mine:1"}), ["true"], Needs()).arguments
    named = {"kind": "enroot", "image_file": "my image.sqsh"}
    assert wrap(deploy(named), ["true"], Needs()).arguments[-2].endswith("/my configs/my image.sqsh")


def test_docker_reads_several_gpus_as_one_value(deploy):
    one, two = (wrap(deploy("docker"), ["x"], Needs(gpus=gpus)).arguments for gpus in ((3,), (2, 5)))
    assert one[one.index("--gpus") + 1] == "device=3"
    assert two[two.index("--gpus") + 1] == '"device=2,5"'


@pytest.mark.parametrize(
    ("kind", "inside"), [("host", "5,2,7"), ("docker", "1,0,2"), ("enroot", "1,0,2"), ("apptainer", "5,2,7")]
)
def test_gpus_are_seen_in_the_order_given(deploy, kind, inside):
    """docker and enroot show these three and count them from 0 along the bus."""
    wrapped = wrap(deploy(kind), ["x"], Needs(gpus=(5, 2, 7)))
    told = [*wrapped.arguments, *(f"{name}={value}" for name, value in wrapped.environment.items())]
    assert f"CUDA_VISIBLE_DEVICES={inside}" in told and "CUDA_DEVICE_ORDER=PCI_BUS_ID" in told


def test_a_command_in_parts_is_explained_part_by_part(deploy):
    parts = [Part(("mpirun", "--x"), "first reason"), Part(("-n", "1", "y"), "second reason")]
    text = script(deploy("docker"), parts, Needs())
    assert text.index("# first reason\n  mpirun\n  --x\n  # second reason\n  -n 1 y\n)") > 0


def test_docker_without_gpus_ports_or_cores(deploy):
    arguments = wrap(deploy("docker"), ["x"], Needs()).arguments
    assert not {"--gpus", "--network", "--cpuset-cpus", "--cpus", "--stop-timeout"} & set(arguments)
    assert arguments[arguments.index("--memory") + 1] == "256000000000"
    # Without CAP_SYS_RESOURCE, as without root, the daemon cannot lift this limit and starts no container.
    assert "memlock=-1" not in arguments and f"stack={64 << 20}" in arguments


def test_cores_that_are_not_chosen_are_a_number(deploy):
    arguments = wrap(deploy("docker"), ["x"], Needs(gpus=(0, 1))).arguments
    assert arguments[arguments.index("--cpus") + 1] == "32"


@pytest.mark.parametrize("kind", ["host", "enroot", "apptainer"])
def test_without_a_daemon_cores_are_inherited(deploy, kind):
    assert wrap(deploy(kind), ["x"], Needs(cores=(0, 1, 2, 8))).arguments[:3] == ["taskset", "--cpu-list", "0-2,8"]
    arguments = wrap(deploy(kind), ["x"], Needs(cores=(0, 1), nodes=(0,))).arguments
    assert arguments[:3] == ["numactl", "--physcpubind=0-1", "--membind=0"]


ODD = ["a b", "it's", 'say "hi"', "a,b", "$HOME", "back\\slash", "ünï", "a=b"]


@pytest.mark.parametrize("name", [*ODD, "a:b"])
@pytest.mark.parametrize(
    ("kind", "target", "readonly"), [("docker", "target", "readonly"), ("apptainer", "destination", "ro")]
)
def test_odd_paths_are_mounted_as_they_are(deploy, tmp_path, name, kind, target, readonly):
    path = tmp_path / name
    arguments = wrap(deploy(kind), ["x"], Needs(reads=(path,))).arguments
    mount = next(csv.reader([arguments[arguments.index("--mount") + 1]]))
    assert mount == ["type=bind", f"source={path}", f"{target}={path}", readonly]


@pytest.mark.parametrize("name", ODD)
def test_odd_paths_in_enroot_s_fstab(deploy, tmp_path, name):
    arguments = wrap(deploy("enroot"), ["x"], Needs(writes=(tmp_path / name,))).arguments
    source, target, kind, options = arguments[arguments.index("--mount") + 1].split(":")
    assert not set(source) & set(" \t\n") and kind == "none" and options == "x-create=auto,rbind,rw"
    back = source.replace("\\040", " ").replace("\\134", "\\")
    assert source == target and back == str(tmp_path / name)


def test_what_enroot_cannot_mount(deploy, tmp_path):
    with pytest.raises(ToolkitError, match="cannot mount a path with a colon"):
        wrap(deploy("enroot"), ["x"], Needs(reads=(tmp_path / "a:b",)))
    with pytest.raises(ToolkitError, match="pass on a variable with a line break in it: X"):
        wrap(deploy("enroot"), ["x"], Needs(environment={"X": "a\nb"}))


def mounted(arguments: list[str]) -> list[str]:
    return [arguments[place + 1] for place, word in enumerate(arguments) if word == "--mount"]


def test_a_path_that_is_read_and_written_is_mounted_once_and_parents_first(deploy, tmp_path):
    needs = Needs(reads=(tmp_path / "a" / "b", tmp_path / "a"), writes=(tmp_path / "a" / "b",))
    found = mounted(wrap(deploy("docker"), ["x"], needs).arguments)
    assert [("readonly" in mount, mount.endswith("/a/b")) for mount in found] == [(True, False), (False, True)]


def test_files_that_a_folder_links_to_come_with_it(deploy, tmp_path):
    """A snapshot in the Hugging Face cache holds links to ../../blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1234").touch()
    (tmp_path / "snapshots" / "main").mkdir(parents=True)
    (tmp_path / "snapshots" / "main" / "config.json").symlink_to("../../blobs/1234")
    (tmp_path / "snapshots" / "main" / "lost").symlink_to("nowhere")
    (tmp_path / "original").mkdir()
    (tmp_path / "snapshots" / "main" / "original").symlink_to(tmp_path / "original")
    found = mounted(wrap(deploy("docker"), ["x"], Needs(reads=(tmp_path / "snapshots" / "main",))).arguments)
    assert [mount.split(",")[1] for mount in found] == [
        f"source={tmp_path / 'blobs'}",
        f"source={tmp_path / 'original'}",
        f"source={tmp_path / 'snapshots' / 'main'}",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_handed_on_by_name(deploy, monkeypatch, kind):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    needs = Needs(secrets=("HF_TOKEN",))
    wrapped = wrap(deploy(kind), ["x"], needs)
    assert not any(SECRET in argument for argument in wrapped.arguments)
    assert SECRET not in script(deploy(kind), ["x"], needs)
    assert wrapped.environ()["APPTAINERENV_HF_TOKEN" if kind == "apptainer" else "HF_TOKEN"] == SECRET
    assert ("HF_TOKEN" in wrapped.arguments) == (kind in ("docker", "enroot"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_that_is_not_set_is_not_made_up(deploy, monkeypatch, kind):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    environ = wrap(deploy(kind), ["x"], Needs(secrets=("HF_TOKEN",))).environ()
    assert not any("HF_TOKEN" in name for name in environ)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (["x", f"--hub={SECRET}"], {}),
        (["mpirun", "-x", "NGC_API_KEY=anything"], {}),
        (["x"], {"HF_TOKEN": "by value"}),
        (["x"], {"OTHER": SECRET}),
    ],
)
def test_no_secret_stands_on_a_command_line(deploy, monkeypatch, kind, command, environment):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    needs = Needs(environment=environment, secrets=("HF_TOKEN",))
    with pytest.raises(ToolkitError, match=r"(HF_TOKEN|NGC_API_KEY) ") as caught:
        wrap(deploy(kind), command, needs)
    assert SECRET not in str(caught.value) and "anything" not in str(caught.value)


def test_only_docker_has_to_be_told_to_end(deploy):
    """Its process is a client; a container that is killed with it would be news."""
    assert end_by_force(deploy("docker"), Needs()) == ["docker", "rm", "--force", "toolkit-flagship"]
    assert [end_by_force(deploy(kind), Needs()) for kind in ("host", "enroot", "apptainer")] == [None] * 3


def test_names_that_only_look_like_secrets(deploy):
    needs = Needs(environment={"TOKENIZERS_PARALLELISM": "false", "TOOLKIT_RUN_ID": "x"})
    assert wrap(deploy("docker"), ["trtllm-build", "--max_num_tokens=8192"], needs)


def test_apptainer_s_variables_that_its_option_would_split(deploy):
    wrapped = wrap(deploy("apptainer"), ["x"], Needs(environment={"A": "1,2", "B": "x=1,y=2", "C": '"q"'}))
    assert "A=1,2" in wrapped.arguments
    assert wrapped.environment == {"APPTAINERENV_B": "x=1,y=2", "APPTAINERENV_C": '"q"'}
