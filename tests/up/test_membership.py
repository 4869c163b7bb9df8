"""What nodes tell each other through a real etcd, on loopback: no root and no namespaces are needed."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.ports import free_port
from tests.up.namespaces import RealEtcd, interface, make_certificates
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.operating import NodeTls
from toolkit.errors import ToolkitError
from toolkit.gateway.endpoints import Traffic
from toolkit.gateway.etcd import Etcd, EtcdAway
from toolkit.gateway.node import Node
from toolkit.gateway.node_checks import check_nodes
from toolkit.gateway.records import Record
from toolkit.up.events import Events
from toolkit.up.nodes import Nodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("etcd") and shutil.which("openssl")), reason="needs etcd: apt-get install etcd-server openssl"
    ),
]


@dataclass
class Place:
    """A running etcd, and who may use it."""

    member: str
    etcd: RealEtcd
    tls: dict[str, str]
    folder: Path

    def node(self, number: int, *before: str) -> Node:
        """A node; `before`: members that it asks first."""
        return Node(f"10.0.0.{number}", (*before, self.member), NodeTls(**{k: Path(v) for k, v in self.tls.items()}))

    def answers(self) -> bool:
        host, _, port = self.member.rpartition(":")
        return socket.create_connection((host, int(port)), 1).close() is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("etcd")
    tls = make_certificates(folder)
    log = (folder / "etcd.log").open("wb")
    member, start = (
        f"127.0.0.1:{free_port()}",
        lambda command: subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True),
    )
    made = Place(member, RealEtcd(start, folder, member, free_port()), tls, folder)
    made.etcd.start("--client-cert-auth")
    eventually(made.answers)
    yield made
    made.etcd.kill()


@pytest.fixture(scope="module")
def deployment(place: Place, tiny_llama: Path) -> Deployment:
    gateway = {
        "discovery": f"etcd://{place.member}",
        "interface": interface() or pytest.skip("needs a network interface with an IPv4 address besides lo"),
        "node_tls": place.tls,
        "model_name": "llama",
    }
    content = {"engine": "rehearsal", "model": {"path": str(tiny_llama)}, "hardware": {"gpu": "none"}}
    limits = {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256}
    file = place.folder / "x.yaml"
    file.write_text(yaml.safe_dump({**content, "limits": limits, "gateway": gateway, "output": "out"}))
    return load_deployment(file)


def test_keys_are_there_as_long_as_their_lease(place):
    etcd = Etcd(place.node(1))
    lease = etcd.lease(60)
    etcd.put("/a/b/1", "one", lease)
    etcd.put("/a/c", "no", lease)
    assert etcd.below("/a/b/") == {"/a/b/1": "one"}
    assert etcd.keep(lease)
    etcd.revoke(lease)
    etcd.revoke(lease)
    assert etcd.below("/a/") == {} and not etcd.keep(lease)
    etcd.close()


def test_another_member_is_asked_where_one_is_away(place):
    away = f"127.0.0.1:{free_port()}"
    etcd = Etcd(place.node(1, away))
    assert etcd.below("/none/") == {}
    with pytest.raises(EtcdAway, match=f"{away}: Connection refused"):
        Etcd(Node("10.0.0.1", (away,), place.node(1).tls)).below("/none/")


@pytest.fixture
def meet(place, deployment, tmp_path) -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(number: int, role: str = "all") -> Nodes:
        folder = tmp_path / str(number)
        folder.mkdir()
        gateway = deployment.gateway.model_copy(update={"role": role})
        made.append(Nodes(deployment.model_copy(update={"gateway": gateway}), place.node(number), Events(folder)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("role", ["all", "worker", "front"])
def test_a_node_hears_what_another_one_serves_until_it_leaves(meet, deployment, role):
    """Workers too: a rolling restart there needs others that serve meanwhile, and a standby must know of them."""
    one, two = meet(1), meet(2, role)
    one.tell([Traffic(deployment)], [])
    eventually(lambda: [traffic.address for traffic in two.traffic] == ["10.0.0.1"])
    assert [traffic.replica.serving.http_port for traffic in two.traffic] == [deployment.serving.http_port]
    assert {part.name: part.phase for part in two.parts()} == {"etcd": "running", "node 10.0.0.1": "all"}
    one.tell([Traffic(deployment, draining=True)], [])
    eventually(lambda: [traffic.draining for traffic in two.traffic] == [True])
    one.leave()
    eventually(lambda: two.traffic == [])
    one.close()
    eventually(lambda: len(two.parts()) == 1)


def test_a_record_of_another_version_is_no_sign_of_death(meet, place, deployment):
    etcd = Etcd(place.node(9))
    kept, lease = etcd.lease(600), etcd.lease(600)
    one, two = meet(1), meet(2)
    one.tell([Traffic(deployment)], [kept])
    eventually(lambda: len(two.traffic) == 1)
    key = "/toolkit/llama/nodes/10.0.0.1:8000"
    etcd.put(key, "{}", lease)
    etcd.put("/toolkit/llama/nodes/10.0.0.3:8000", Record("10.0.0.3", "all").text(), lease)
    eventually(lambda: "node 10.0.0.3" in {part.name for part in two.parts()})
    assert [traffic.address for traffic in two.traffic] == ["10.0.0.1"] and etcd.keep(kept)
    etcd.revoke(lease)


def test_the_lease_of_a_worker_that_is_gone_is_ended_by_whoever_sees_it(meet, place, deployment):
    """Else front ends would try it for as long as its lease lasts, where its own node cannot end it."""
    etcd = Etcd(place.node(9))
    lost, kept = etcd.lease(600), etcd.lease(600)
    one, two = meet(1), meet(2)
    one.tell([Traffic(deployment)], [lost, kept])
    eventually(lambda: len(two.traffic) == 1)
    one.tell([Traffic(deployment)], [kept])
    eventually(lambda: not etcd.keep(lost))
    assert etcd.keep(kept)


def test_while_etcd_is_away_nothing_changes(meet, place, deployment):
    one, two = meet(1), meet(2)
    one.tell([Traffic(deployment)], [])
    eventually(lambda: len(two.traffic) == 1)
    place.etcd.kill()
    eventually(lambda: two.parts()[0].phase == "away")
    assert len(two.traffic) == 1 and "127.0.0.1" in two.parts()[0].message
    place.etcd.start("--client-cert-auth")
    eventually(lambda: two.parts()[0].phase == "running")
    one.tell([], [])
    eventually(lambda: two.traffic == [])


def test_a_node_that_etcd_forgot_says_so_and_is_there_again(meet, place, deployment):
    one, two = meet(1), meet(2)
    one.tell([Traffic(deployment)], [])
    eventually(lambda: len(two.traffic) == 1)
    lease, etcd = one._lease, Etcd(place.node(9))
    assert lease
    etcd.revoke(lease)
    eventually(lambda: one.expired)
    eventually(lambda: len(two.traffic) == 1)


@pytest.mark.parametrize("how", ["anybody", "plain"])
def test_an_etcd_that_takes_anybody_is_refused(place, deployment, tmp_path, how):
    """One with TLS and without --client-cert-auth, and one without TLS."""
    member = f"127.0.0.1:{free_port()}"
    for name in ("etcd.pem", "etcd-key.pem", "ca.pem"):
        shutil.copy(place.folder / name, tmp_path)
    if how == "anybody":
        start = subprocess.Popen
        etcd = RealEtcd(
            lambda command: start(_without_ca(command), start_new_session=True), tmp_path, member, free_port()
        )
        etcd.start()
    else:
        etcd = RealEtcd(
            lambda command: subprocess.Popen(_plain(command), start_new_session=True), tmp_path, member, free_port()
        )
        etcd.start()
    try:
        host, _, port = member.rpartition(":")
        eventually(lambda: socket.create_connection((host, int(port)), 1).close() is None)
        gateway = deployment.gateway.model_copy(update={"discovery": f"etcd://{member}"})
        with pytest.raises(ToolkitError) as caught:
            check_nodes(deployment.model_copy(update={"gateway": gateway}))
        message = str(caught.value)
        expected = "takes clients without a certificate. Start etcd with --client-cert-auth"
        assert (expected if how == "anybody" else "gateway.discovery: etcd: ") in message and "\n" not in message
    finally:
        etcd.kill()


def _without_ca(command: list[str]) -> list[str]:
    place = command.index("--trusted-ca-file")
    return command[:place] + command[place + 2 :]


def _plain(command: list[str]) -> list[str]:
    """Without the options of TLS, and with http:// URLs."""
    kept = command[: command.index("--cert-file")]
    return [part.replace("https://", "http://") for part in kept]
