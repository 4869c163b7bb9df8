"""Nodes with addresses of their own: network namespaces of Linux on one bridge, and a real etcd at its other end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import AF_INET
from typing import Any

import psutil

NET = "10.77.0"
HUB = f"{NET}.100"
ETCD_PORT = 2379
CLONE_NEWNET = 0x40000000
EXTENSIONS = "extendedKeyUsage=serverAuth,clientAuth"


ETCD = (("etcd", "etcd-server"), ("openssl", "openssl"))


def missing(programs: tuple[tuple[str, str], ...] = ETCD) -> str:
    """What keeps this machine from having such nodes, and what to do; "" if nothing does.

    `programs` are what a test needs besides: (program, package of Debian).
    """
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), *programs):
        if shutil.which(program) is None:
            return f"needs {program}: apt-get install {package}"
    probe = f"toolkit{os.getpid()}-probe"
    added = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    inside = ["ip", "netns", "exec", probe, *("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true")]
    tried = subprocess.run(inside, capture_output=True, text=True) if added.returncode == 0 else added
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    return "" if tried.returncode == 0 else f"needs network namespaces of its own: {' '.join(tried.stderr.split())}"


def interface() -> str | None:
    """A network interface of this machine with an IPv4 address, besides loopback."""
    found = psutil.net_if_addrs().items()
    return next((name for name, all_of in found if name != "lo" and any(one.family == AF_INET for one in all_of)), None)


class Network:
    """Namespaces `hub` and `1`, `2`, ...; the machine's own network is not touched."""

    def __init__(self, nodes: int) -> None:
        self._prefix = f"toolkit{os.getpid()}-"
        self.numbers = range(1, nodes + 1)

    def __enter__(self) -> Network:
        for name in ("hub", *self.numbers):
            _ip("netns", "add", self.name(name))
            self.ip(name, "link", "set", "lo", "up")
        self.ip("hub", "link", "add", "bridge", "type", "bridge")
        self.ip("hub", "addr", "add", f"{HUB}/24", "dev", "bridge")
        self.ip("hub", "link", "set", "bridge", "up")
        for number in self.numbers:
            peer = ("peer", "name", "eth0", "netns", self.name(number))
            self.ip("hub", "link", "add", f"to{number}", "type", "veth", *peer)
            self.ip("hub", "link", "set", f"to{number}", "master", "bridge", "up")
            self.ip(number, "addr", "add", f"{address(number)}/24", "dev", "eth0")
            self.ip(number, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("hub", *self.numbers):
            subprocess.run(["ip", "netns", "delete", self.name(name)], check=False)

    def name(self, node: int | str) -> str:
        return f"{self._prefix}{node}"

    def ip(self, node: int | str, *arguments: str) -> None:
        """Run `ip` in the namespace of a node."""
        _ip("-n", self.name(node), *arguments)

    def cut(self, number: int) -> None:
        """The cable is out: nothing arrives any more, and nobody is told."""
        self.ip("hub", "link", "set", f"to{number}", "down")

    def mend(self, number: int) -> None:
        self.ip("hub", "link", "set", f"to{number}", "up")

    def start(self, node: int | str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program there."""
        with log.open("ab") as output:
            full = ["ip", "netns", "exec", self.name(node), *command]
            return subprocess.Popen(full, stdout=output, stderr=output, start_new_session=True)

    def empty(self, node: int | str) -> bool:
        """Whether no process is left there."""
        command = ["ip", "netns", "pids", self.name(node)]
        return not subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def threads(self, node: int | str, count: int) -> ThreadPoolExecutor:
        """Threads whose connections begin there."""
        return ThreadPoolExecutor(count, initializer=_enter, initargs=(self.name(node),))


def address(number: int) -> str:
    return f"{NET}.{number}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _enter(name: str) -> None:
    """Move this thread, and only this one, into a namespace. Python 3.11 has no os.setns."""
    with Path(f"/var/run/netns/{name}").open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), name)


def make_certificates(folder: Path) -> dict[str, Any]:
    """A CA, and what it signs for etcd and for all nodes, as docs/how-to/nodes.md has it. Returns gateway.node_tls."""
    _openssl(folder, "req", "-x509", *KEY, "-keyout", "ca-key.pem", "-subj", "/CN=nodes", "-out", "ca.pem")
    sign(folder, "etcd", f"IP:{HUB},IP:127.0.0.1")
    sign(folder, "node", "DNS:toolkit-node")
    (folder / "node-key.pem").chmod(0o600)
    return {"ca": str(folder / "ca.pem"), "certificate": str(folder / "node.pem"), "key": str(folder / "node-key.pem")}


def sign(folder: Path, name: str, alternative: str) -> None:
    """Make NAME.pem and NAME-key.pem, signed by the CA there, with these names and addresses."""
    (folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\n{EXTENSIONS}\n")
    _openssl(folder, "req", *KEY, "-keyout", f"{name}-key.pem", "-subj", f"/CN={name}", "-out", f"{name}.csr")
    ca = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *ca, "-extfile", f"{name}.ext", "-out", f"{name}.pem")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class RealEtcd:
    """etcd with one member. It keeps its data when it is killed."""

    def __init__(
        self,
        start: Callable[[list[str]], subprocess.Popen[bytes]],
        folder: Path,
        member: str = f"{HUB}:{ETCD_PORT}",
        peers: int = ETCD_PORT + 1,
    ) -> None:
        self._start, self._folder, self._url, self._peers = start, folder, f"https://{member}", peers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """`more`: options besides those of the docs."""
        tls = ["--cert-file", "etcd.pem", "--key-file", "etcd-key.pem", "--trusted-ca-file", "ca.pem"]
        tls = [str(self._folder / value) if value.endswith(".pem") else value for value in tls]
        urls = ["--listen-client-urls", self._url, "--advertise-client-urls", self._url]
        data = ["--data-dir", str(self._folder / "etcd"), "--listen-peer-urls", f"http://127.0.0.1:{self._peers}"]
        self._process = self._start(["etcd", *data, *urls, *tls, *more])

    def kill(self) -> None:
        if self._process:
            kill_group(self._process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for it and what it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


TOOLKIT = [sys.executable, "-m", "toolkit"]
