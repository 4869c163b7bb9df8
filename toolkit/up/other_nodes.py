"""The replicas of this node and the other nodes: what each tells the other, and how this node leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from toolkit.gateway.door import PartState
from toolkit.gateway.endpoints import Traffic
from toolkit.gateway.records import Migration, Record, without_drained
from toolkit.up.nodes import LOOK_S, Nodes
from toolkit.up.replica import Replica

TICK_S = 0.1
ROUTED_S = 1.0


class OtherNodes:
    """The other nodes that serve this model, as seen from the replicas of this one. `nodes`: None if this is alone."""

    def __init__(self, replicas: Sequence[Replica], nodes: Nodes | None = None) -> None:
        self._replicas, self._nodes = replicas, nodes
        self.note = ""
        """How a migration of this node goes, or how the last one ended."""
        self.asks_back = False
        """This node asks all to go back to the kind of engine of their YAML."""

    @property
    def records(self) -> list[Record]:
        """What the other nodes tell, in the order of their addresses; none if this is alone."""
        return self._nodes.others if self._nodes else []

    @property
    def address(self) -> str:
        """This node's, "" if it is alone."""
        return self._nodes.own.address if self._nodes else ""

    @property
    def back_asked(self) -> bool:
        """Whether any node asks all to go back."""
        return self.asks_back or any(record.migration.back for record in self.records)

    @property
    def serve(self) -> bool:
        """Whether a replica on another node takes new requests."""
        return self._nodes is not None and bool(without_drained(self._nodes.traffic))

    @property
    def routed_s(self) -> float:
        """Time for Envoy, the router and the other nodes to learn that a replica drains."""
        return ROUTED_S if self._nodes is None else ROUTED_S + 4 * LOOK_S

    def meet(self, traffic: Sequence[Traffic], moved: bool = False) -> list[Traffic]:
        """Tell the other nodes what this one serves. Returns what they serve.

        moved: some of its replicas run another kind of engine than its YAML says.
        """
        if self._nodes is None:
            return []
        if self._nodes.expired:  # the others have ended the leases of its workers
            self._nodes.expired = False
            for replica in self._replicas:
                replica.worker.kill()
        for replica in self._replicas:
            while replica.ended:
                self._nodes.end_worker(replica.ended.pop())
        leases = [replica.lease for replica in self._replicas if replica.lease]
        self._nodes.tell(traffic, leases, Migration(moved, self.note, self.asks_back))
        return self._nodes.traffic

    def leave(self, may_wait: Callable[[], bool]) -> None:
        """Take no more requests from other nodes, and finish those that came from them to the workers here."""
        if self._nodes is None:
            return
        self._nodes.leave()
        for replica in self._replicas:
            replica.draining = True
            replica.worker.tell("leave")
        routed = time.monotonic() + self.routed_s
        while may_wait():
            if time.monotonic() > routed and not any(replica.worker.alive for replica in self._replicas):
                return
            time.sleep(TICK_S)

    def parts(self) -> list[PartState]:
        """etcd and the other nodes, for `toolkit status`."""
        return self._nodes.parts() if self._nodes else []

    def close(self) -> None:
        """Leave etcd, when no replica of this node runs any more."""
        if self._nodes:
            self._nodes.close()
