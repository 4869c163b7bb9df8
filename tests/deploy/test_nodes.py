"""Deployments whose nodes find each other through etcd."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.deploy.folders import NODES, OWN_ETCD, SITE, change, deployed, refused
from tests.deploy.test_kubernetes import rendered


@pytest.fixture
def many(config):
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**content, "gateway": NODES, "deploy": SITE}))
    return config


def test_compose_shows_the_container_the_certificates(tmp_path, many):
    folder = deployed(many, "compose", tmp_path / "out")
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    service = (
        compose["services"]["serve"] if "serve" in compose["services"] else next(iter(compose["services"].values()))
    )
    assert "/pki" in yaml.safe_dump(service), "mounted"
    assert service["network_mode"] == "host", "its interface is the node's"


def test_slurm_keeps_the_nodes_together(tmp_path, many):
    folder = deployed(many, "slurm", tmp_path / "out")
    served = yaml.safe_load(next((folder / "serve").glob("*.yaml")).read_text())
    assert served["gateway"]["discovery"] == NODES["discovery"]
    assert served["gateway"]["node_tls"] == NODES["node_tls"]
    assert "/pki/node-key.pem" in (folder / "serve.sbatch").read_text(), "mounted in the image"


def test_pods_of_one_service(tmp_path, many):
    """With an etcd elsewhere: the chart brings none, and the pods may reach that one."""
    folder = deployed(many, "kubernetes", tmp_path / "out")
    pod = yaml.safe_load((folder / f"chart/files/{many.name}").read_text())
    assert (pod["gateway"]["discovery"], pod["gateway"]["interface"]) == (NODES["discovery"], "eth0")
    assert "host" not in pod["serving"] and pod["serving"]["metrics_host"] == "0.0.0.0", "Triton is on loopback"
    objects = rendered(folder)
    assert not [kind for kind in objects if kind.endswith(("-etcd", "-peers"))]
    assert {"ports": [{"protocol": "TCP", "port": 2379}]} in objects["NetworkPolicy"]["spec"]["egress"]
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    (private,) = spec["initContainers"]
    folder_of_key = str(Path(pod["gateway"]["node_tls"]["key"]).parent)
    assert private["command"][:3] == ["install", "-m", "600"] and private["command"][-1] == folder_of_key
    assert folder_of_key in [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]


def test_the_etcd_of_the_chart(tmp_path, many):
    folder = deployed(change(many, gateway=OWN_ETCD), "kubernetes", tmp_path / "out")
    objects = rendered(folder)
    own = objects["StatefulSet-etcd"]["spec"]["template"]["metadata"]["labels"]
    assert not objects["Service"]["spec"]["selector"].items() <= own.items(), "no client reaches it through the door"
    names = f"{objects['Service-etcd']['metadata']['name']}", objects["Service-peers"]["metadata"]["name"]
    readme = (folder / "README.md").read_text()
    for name in (names[0], *(f"{names[0]}-{number}.{names[1]}" for number in range(3))):
        assert f"DNS:{name}" in readme, "in the certificate that its README makes"
    # In the stage that builds too: it is there when serving begins.
    assert "StatefulSet-etcd" in rendered(folder, "stage=build")


def test_a_rollout_waits_for_the_replicas_of_each_pod(tmp_path, many):
    """The door of a pod answers as soon as another pod serves."""
    container = rendered(deployed(many, "kubernetes", tmp_path / "out"))["Deployment"]["spec"]["template"]["spec"]
    assert "toolkit status" in container["containers"][0]["startupProbe"]["exec"]["command"][-1]


def test_what_a_chart_has_no_pods_for(tmp_path, many):
    line = refused(change(many, gateway={"role": "worker"}), "kubernetes", tmp_path / "out")
    assert "gateway.role: worker: each pod of the chart has replicas and a door" in line
    wrong = {"role": "all", "discovery": OWN_ETCD["discovery"].replace("2379", "2380")}
    line = refused(change(many, gateway=wrong), "kubernetes", tmp_path / "out")
    assert "is the etcd that the chart brings, at port 2379 alone. Use etcd://smollm2-2x-rehearsal-etcd:2379" in line
