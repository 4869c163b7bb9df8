"""This node among the others: it tells etcd what it serves, and hears what they serve.

While etcd is away, the last known state stays: requests do not need etcd.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from toolkit.config.deployment import Deployment
from toolkit.gateway.door import PartState
from toolkit.gateway.endpoints import Traffic
from toolkit.gateway.etcd import Etcd, EtcdAway
from toolkit.gateway.node import Node
from toolkit.gateway.records import Migration, Record, folder, key, read_record
from toolkit.up.events import Events

LOOK_S = 0.5
LEASE_S = 10
"""Seconds after which etcd forgets a node that does not renew its lease."""


class Nodes:
    """All nodes that serve this model. A thread of its own asks etcd; the other methods never wait for it."""

    def __init__(self, deployment: Deployment, node: Node, events: Events) -> None:
        self._deployment, self._node, self._events = deployment, node, events
        self._etcd = Etcd(node)
        self._key, self._folder = key(deployment, node.address), folder(deployment)
        self._own = Record(node.address, deployment.gateway.role)
        self._written: Record | None = None
        self._lease: str | None = None
        self._others: dict[str, Record] = {}
        self._joined: dict[str, float] = {}
        self._away, self._since = "", time.time()
        self._ended: list[str] = []
        self.expired = False
        """Whether etcd has forgotten this node, so that it got no requests. OtherNodes acts on it and clears it."""
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="nodes", daemon=True)
        self._thread.start()

    @property
    def traffic(self) -> list[Traffic]:
        """The replicas on the other nodes that take requests."""
        return [traffic for record in self._others.values() for traffic in record.traffic]

    @property
    def own(self) -> Record:
        """What this node tells the others."""
        return self._own

    @property
    def others(self) -> list[Record]:
        """What the other nodes tell, in the order of their addresses."""
        return sorted(self._others.values(), key=lambda record: IPv4Address(record.address))

    def tell(self, traffic: Iterable[Traffic], leases: Iterable[str], migration: Migration | None = None) -> None:
        """Take what this node serves now, to tell the others."""
        how_far = self._own.migration if migration is None else migration
        own = Record(self._node.address, self._deployment.gateway.role, tuple(traffic), tuple(leases), how_far)
        if own != self._own:
            self._own = own
            self._wake.set()

    def end_worker(self, lease: str) -> None:
        """End the lease of a worker of this node that has ended, so that no front end tries it."""
        self._ended.append(lease)
        self._wake.set()

    def leave(self) -> None:
        """Tell the others at once that this node takes no new requests. Its workers may still finish theirs."""
        self.tell((), self._own.leases)

    def close(self) -> None:
        """End the leases in etcd, if etcd answers, and the thread."""
        self._stop.set()
        self._wake.set()
        self._thread.join(LEASE_S)

    def parts(self) -> list[PartState]:
        """etcd and the other nodes, for `toolkit status`."""
        etcd = PartState("etcd", "away" if self._away else "running", self._since, message=self._away)
        others = sorted(self._others.items())
        return [etcd, *(_part(record, self._joined.get(name, self._since)) for name, record in others)]

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
                self._note("")
            except EtcdAway as error:
                self._note(str(error))
            except (KeyError, TypeError, ValueError) as error:  # the answer is not from etcd
                self._note(f"the answer is not from etcd: {error!r}")
            self._wake.wait(LOOK_S)
            self._wake.clear()
        try:
            for lease in (*self._ended, *filter(None, [self._lease])):
                self._etcd.revoke(lease)
        except EtcdAway:
            pass  # the lease ends by itself
        self._etcd.close()

    def _look(self) -> None:
        """Renew the lease, write what is new, and read the records of the others."""
        if self._lease is None or not self._etcd.keep(self._lease):
            self.expired = self._lease is not None
            self._lease, self._written = self._etcd.lease(LEASE_S), None
        if (own := self._own) != self._written:
            self._etcd.put(self._key, own.text(), self._lease)
            self._written = own
        while self._ended:
            self._etcd.revoke(self._ended[-1])
            self._ended.pop()
        self._hear(self._etcd.below(self._folder))

    def _hear(self, texts: dict[str, str]) -> None:
        before, others = self._others, {}
        for name in texts.keys() - {self._key}:
            # A record that cannot be read, as from another version of the toolkit, does not mean that its node is gone.
            if record := read_record(texts[name], self._deployment) or before.get(name):
                others[name] = record
        self._others = others
        for name in others.keys() - before.keys():
            self._joined[name] = time.time()
            self._events.note(f"node {others[name].address}", "joined", action=_serves(others[name].traffic))
        for name in before.keys() - others.keys():
            self._events.note(f"node {before[name].address}", "left")
        for name, record in before.items():  # workers that died with their node: nobody else would end their leases
            for lease in set(record.leases) - set(others[name].leases if name in others else ()):
                self._etcd.revoke(lease)

    def _note(self, problem: str) -> None:
        if bool(problem) != bool(self._away):
            self._since = time.time()
            action = "serving goes on with the nodes that were there" if problem else ""
            self._events.note("etcd", "away" if problem else "back", problem, action)
        self._away = problem


def _part(record: Record, since: float) -> PartState:
    how_far = record.migration
    notes = (_serves(record.traffic), "moved to another kind of engine" if how_far.moved else "", how_far.note)
    return PartState(f"node {record.address}", record.role, since, message="; ".join(filter(None, notes)))


def _serves(traffic: Sequence[Traffic]) -> str:
    count = sum(not one.draining for one in traffic)
    return f"{count} replica{'s' if count != 1 else ''} ready"
