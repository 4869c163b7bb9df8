"""What several nodes need, checked before anything starts, and the way from one node's Envoy to another's Triton."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateway.conftest import Backend
from tests.gateway.test_envoy import ask
from tests.ports import free_port
from tests.up.namespaces import interface, make_certificates
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.gateway import dynamo
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.limits import CLUSTERS, write_limits
from toolkit.gateway.node import check_node, node_of
from toolkit.gateway.node_checks import check_nodes
from toolkit.gateway.places import Places
from toolkit.gateway.records import Record, key, read_record

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")
HERE = interface()
needs_network = pytest.mark.skipif(HERE is None, reason="needs a network interface with an IPv4 address besides lo")
TLS = {"ca": "ca.pem", "certificate": "node.pem", "key": "node-key.pem"}
GOOD = {"discovery": "etcd://10.0.0.1:2379", "interface": "eth1", "node_tls": TLS}


@pytest.mark.parametrize(
    ("gateway", "message"),
    [
        ({"role": "worker"}, "gateway.role: worker is one of several nodes, which find each other through etcd. Add"),
        ({"interface": "eth1"}, "gateway.interface: is for several nodes, and discovery is file"),
        ({"node_tls": TLS}, "gateway.node_tls: is for several nodes, and discovery is file"),
        ({**GOOD, "interface": None}, "gateway.interface: is not given: discovery through etcd needs the network"),
        ({**GOOD, "interface": "lo"}, "gateway.interface: lo is not the network between the nodes"),
        ({**GOOD, "interface": "127.0.0.1"}, "gateway.interface: 127.0.0.1 is not the network between the nodes"),
        ({**GOOD, "interface": "0.0.0.0"}, "gateway.interface: 0.0.0.0 is not the network between the nodes"),
        ({**GOOD, "node_tls": None}, "gateway.node_tls: is not given: without it anybody on that network could read"),
        ({**GOOD, "discovery": "etcd://10.0.0.1"}, "gateway.discovery: 'etcd://10.0.0.1' is neither file nor etcd://"),
        ({**GOOD, "discovery": "http://a:1"}, "gateway.discovery: 'http://a:1' is neither file nor etcd://HOST:PORT"),
        ({**GOOD, "role": "router"}, "gateway.role: input should be 'all', 'worker' or 'front', got 'router'"),
    ],
)
def test_a_mistake_is_one_line(door_yaml, gateway, message):
    with pytest.raises(ToolkitError) as caught:
        door_yaml(gateway=gateway)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_triton_itself_stays_on_loopback(door_yaml):
    file = door_yaml(gateway=GOOD).file
    content = yaml.safe_load(file.read_text())
    content["serving"]["host"] = "0.0.0.0"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ToolkitError, match=r"serving.host: 0.0.0.0 opens Triton without TLS"):
        load_deployment(file)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@needs_openssl
@needs_network
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "node.pem").unlink(), "node.pem: no such file. gateway.node_tls needs ca,"),
        (lambda folder: (folder / "ca.pem").write_text("x"), "ca.pem: is not a certificate in PEM"),
        (lambda folder: shutil.copy(folder / "etcd-key.pem", folder / "node-key.pem"), "does not go with its key"),
        (lambda folder: (folder / "node-key.pem").chmod(0o644), "node-key.pem: can be read by other users. Close it:"),
        (lambda folder: use_etcds(folder), "node.pem: other nodes would refuse it: Hostname mismatch"),
        (lambda folder: make_certificates_again(folder), "node.pem: other nodes would refuse it: unable to get local"),
    ],
    ids=["missing", "no PEM", "another key", "open key", "another name", "another CA"],
)
def test_a_certificate_that_no_node_would_take_is_refused_here(door_yaml, tls, tmp_path, change, message):
    folder = tmp_path / "tls"
    shutil.copytree(Path(tls["ca"]).parent, folder)
    change(folder)
    files = {name: str(folder / Path(file).name) for name, file in tls.items()}
    deployment = door_yaml(gateway={**GOOD, "interface": HERE, "node_tls": files})
    node = node_of(deployment)
    assert node
    with pytest.raises(ToolkitError) as caught:
        check_node(node)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def use_etcds(folder: Path) -> None:
    """A certificate of the same CA, for another name."""
    for name in ("", "-key"):
        shutil.copy(folder / f"etcd{name}.pem", folder / f"node{name}.pem")
    (folder / "node-key.pem").chmod(0o600)


def make_certificates_again(folder: Path) -> None:
    before = (folder / "ca.pem").read_bytes()
    make_certificates(folder)
    (folder / "ca.pem").write_bytes(before)


@needs_openssl
@needs_network
def test_what_this_machine_lacks_is_one_line(door_yaml, tls):
    with pytest.raises(ToolkitError, match=r"gateway.interface: this machine has no eth77. It has: .*\("):
        check_nodes(door_yaml(gateway={**GOOD, "interface": "eth77", "node_tls": tls}))
    discovery = f"etcd://127.0.0.1:{free_port()}"
    with pytest.raises(ToolkitError, match=r"gateway.discovery: etcd: 127.0.0.1:\d+: Connection refused. Start it"):
        check_nodes(door_yaml(gateway={**GOOD, "interface": HERE, "discovery": discovery, "node_tls": tls}))


def test_a_record_comes_back_as_it_was_told(door_yaml):
    deployment = door_yaml(gateway=GOOD)
    traffic = [Traffic(deployment.per_replica()[0]), Traffic(deployment.per_replica()[1], True, True)]
    told = Record("10.0.0.5", "worker", tuple(traffic), ("123",))
    heard = read_record(told.text(), deployment)
    assert heard and (heard.address, heard.role, heard.leases) == ("10.0.0.5", "worker", ("123",))
    assert heard.text() == told.text() and {one.address for one in heard.traffic} == {"10.0.0.5"}
    assert key(deployment, "10.0.0.5") == f"/toolkit/llama/nodes/10.0.0.5:{deployment.serving.http_port}"


@pytest.mark.parametrize(
    "change",
    [
        {"address": "example.org"},
        {"replicas": [{}]},
        {"replicas": [{"http_port": 0, "grpc_port": 1, "draining": False, "standby": False}]},
        {"leases": ["x"]},
        {"leases": None},
    ],
)
def test_a_record_that_is_none_is_passed_over(door_yaml, change):
    whole = json.loads(Record("10.0.0.5", "worker").text())
    assert read_record(json.dumps(whole), door_yaml(gateway=GOOD)) is not None
    assert read_record(json.dumps({**whole, **change}), door_yaml(gateway=GOOD)) is None
    assert read_record("[]", door_yaml(gateway=GOOD)) is None and read_record("{", door_yaml(gateway=GOOD)) is None


@pytest.fixture
def start_envoy(tmp_path) -> Iterator[Callable[[Deployment, str], Places]]:
    from toolkit.gateway.programs import envoy

    processes = []

    def start(deployment: Deployment, address: str, traffic: tuple[Traffic, ...] = ()) -> Places:
        folder = tmp_path / address
        folder.mkdir()
        places = Places(folder, folder, free_port(), free_port(), address)
        write_endpoints(places, traffic)
        write_limits(places, dict.fromkeys(CLUSTERS, deployment.most_requests))
        places.envoy_config.write_text(yaml.safe_dump(config(deployment, places)))
        command = [str(envoy()), "-c", str(places.envoy_config), "--disable-hot-restart", "--concurrency", "1"]
        processes.append(subprocess.Popen([*command, "--log-level", "error"]))
        return places

    yield start
    for process in processes:
        process.kill()
        process.wait()


@needs_openssl
@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
def test_a_door_reaches_triton_on_another_node_by_mutual_tls(door_yaml, start_envoy, tls):
    """The nodes are two addresses of loopback, which the rules of the YAML would refuse."""
    gateway = {**GOOD, "node_tls": tls}
    worker = door_yaml(replicas=1, gateway={**gateway, "role": "worker"})
    front = door_yaml(replicas=1, gateway={**gateway, "role": "front"})
    backend = Backend(worker.serving.http_port)
    start_envoy(worker, "127.0.0.2")
    record = read_record(Record("127.0.0.2", "worker", (Traffic(worker),)).text(), front)
    assert record
    start_envoy(front, "127.0.0.3", record.traffic)
    url = f"http://127.0.0.1:{front.gateway.port}"
    eventually(lambda: ask(url, "/v2/models/ensemble/generate", {"text_input": "a"})[0] == 200)
    assert backend.asked[-1] == "/v2/models/ensemble/generate"
    plain = http.client.HTTPConnection("127.0.0.2", worker.serving.http_port, timeout=10)
    with pytest.raises((OSError, http.client.HTTPException)):
        plain.request("GET", "/v2/health/ready")
        plain.getresponse()
    backend.close()


def test_dynamo_gets_one_member_of_etcd_that_answers(monkeypatch):
    """With several of which one was away, its workers never joined."""
    with socket.create_server(("127.0.0.1", 0)) as member:
        here = f"https://127.0.0.1:{member.getsockname()[1]}"
        monkeypatch.setenv(dynamo.DISCOVERY, "etcd")
        for away in ("https://127.0.0.1:1", "https://127.0.0.1:2"):
            monkeypatch.setenv(dynamo.MEMBERS, f"{away},{here}")
            dynamo.wait_for_discovery()
            assert os.environ[dynamo.MEMBERS] == here
