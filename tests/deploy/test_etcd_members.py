"""The etcd of the chart, as its rendered form in the repository starts it: three real members in network namespaces."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.folders import GOLDEN
from tests.up.namespaces import HUB, Network, address, kill_group, make_certificates, missing, sign
from tests.waiting import eventually
from toolkit.config.operating import NodeTls
from toolkit.gateway.etcd import Etcd
from toolkit.gateway.node import Node

MISSING = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


class Members:
    """The members, each a pod with an address of its own. `folder` has the certificates."""

    def __init__(self, network: Network, folder: Path) -> None:
        objects = yaml.safe_load_all((GOLDEN / "helm/pair-etcd.yaml").read_text())
        self._set = next(one for one in objects if one["kind"] == "StatefulSet")
        self.name, self._peers = self._set["metadata"]["name"], self._set["spec"]["serviceName"]
        self.numbers = range(self._set["spec"]["replicas"])
        self._network, self._folder = network, folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.hosts = {f"{self.name}-{number}.{self._peers}": address(number + 1) for number in self.numbers}
        lines = [f"{where} {host}\n" for host, where in self.hosts.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))

    def start(self, number: int) -> None:
        (container,) = self._set["spec"]["template"]["spec"]["containers"]
        command = [word.replace("$(POD)", f"{self.name}-{number}") for word in container["command"]]
        pod = self._folder / f"pod{number}"
        pod.mkdir(exist_ok=True)
        mounts = {"/etc/hosts": self._folder / "hosts"}
        # The folders of a pod do not exist on this machine: its root file system gets them in memory.
        script = "mount -t tmpfs none /mnt && mkdir /mnt/data /mnt/secret"
        for place, source in {**mounts, "/mnt/data": pod, "/mnt/secret": self._folder}.items():
            script += f" && mount --bind {shlex.quote(str(source))} {place}"
        inside = shlex.join(command).replace("=/data", "=/mnt/data").replace("=/secret", "=/mnt/secret")
        full = ["unshare", "--mount", "sh", "-c", f"{script} && exec {inside}"]
        self.processes[number] = self._network.start(number + 1, full, self._folder / f"etcd{number}.log")

    def client(self, number: int, tls: NodeTls) -> Etcd:
        return Etcd(Node(HUB, (f"{address(number + 1)}:2379",), tls))


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    with Network(3) as network:
        found = Members(network, tmp_path)
        try:
            yield found
        finally:
            for process in found.processes.values():
                kill_group(process)


def test_two_of_three_members_are_enough(tmp_path, members, monkeypatch):
    monkeypatch.setenv("no_proxy", ",".join(members.hosts.values()))
    tls = NodeTls(**{name: Path(file) for name, file in make_certificates(tmp_path).items()})
    # The names that the README's command puts into the certificate, and the addresses that this test asks.
    readme = (GOLDEN / "kubernetes/pair-etcd/README.md").read_text()
    names = readme.partition("subjectAltName=")[2].partition("\\n")[0]
    assert set(names.split(",")) == {f"DNS:{name}" for name in (members.name, *members.hosts)}
    sign(tmp_path, "etcd", ",".join((names, *(f"IP:{where}" for where in members.hosts.values()))))
    for number in members.numbers:
        members.start(number)
    threads = {number: members.client(number, tls) for number in members.numbers}
    with members._network.threads("hub", 1) as there:

        def write(number: int, value: str) -> None:
            client = threads[number]
            client.put("/toolkit/x", value, client.lease(60))

        def read(number: int) -> str:
            return threads[number].below("/toolkit/")["/toolkit/x"]

        eventually(lambda: there.submit(write, 0, "first").result() is None, 120)
        assert [there.submit(read, number).result() for number in members.numbers] == ["first"] * 3
        kill_group(members.processes[0])
        eventually(lambda: there.submit(write, 1, "second").result() is None, 120)
        assert there.submit(read, 2).result() == "second"
        members.start(0)  # with its data, as its volume keeps them
        eventually(lambda: there.submit(read, 0).result() == "second", 120)
