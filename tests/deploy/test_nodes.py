"""Deployments whose nodes find each other through etcd."""

from __future__ import annotations

import pytest
import yaml

from tests.deploy.folders import SITE, deployed, refused

NODES = {
    "discovery": "etcd://10.0.0.9:2379",
    "interface": "eth1",
    "node_tls": {"ca": "/pki/ca.pem", "certificate": "/pki/node.pem", "key": "/pki/node-key.pem"},
}


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


def test_a_pod_has_a_door_of_its_own(tmp_path, many):
    line = refused(many, "kubernetes", tmp_path / "out")
    assert "gateway.discovery: etcd is not for pods" in line and "discovery: file" in line
