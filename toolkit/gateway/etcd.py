"""etcd's API, as far as nodes need it to find each other: JSON over HTTPS, with the node's certificate.

https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway. Tried with 3.4.23, Debian's.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any

from toolkit.gateway.node import Node, tls_context

TIMEOUT_S = 2.0


class EtcdAway(Exception):
    """No member gave a usable answer."""


class Etcd:
    """Asks one member, and the next one if that does not answer. Each method raises EtcdAway. For one thread."""

    def __init__(self, node: Node) -> None:
        self._members, self._context = node.etcd, tls_context(node.tls)
        self._connection: http.client.HTTPSConnection | None = None
        self._turn = 0

    def lease(self, seconds: int) -> str:
        """A new lease."""
        return str(self._ask("lease/grant", {"TTL": seconds})["ID"])

    def keep(self, lease: str) -> bool:
        """Renew a lease for its whole time. False if it has ended."""
        answer = self._ask("lease/keepalive", {"ID": lease})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: str) -> None:
        """End a lease, and all keys with it. It is no error if the lease has ended already."""
        self._ask("lease/revoke", {"ID": lease}, gone=True)

    def put(self, key: str, value: str, lease: str) -> None:
        """Write a key, which exists as long as its lease."""
        self._ask("kv/put", {"key": _coded(key), "value": _coded(value), "lease": lease})

    def below(self, prefix: str) -> dict[str, str]:
        """All keys that begin with `prefix`, which ends in "/", with their values."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        answer = self._ask("kv/range", {"key": _coded(prefix), "range_end": _coded(end)})
        return {_decoded(pair["key"]): _decoded(pair.get("value", "")) for pair in answer.get("kvs", ())}

    def _ask(self, path: str, message: Mapping[str, Any], gone: bool = False) -> dict[str, Any]:
        problems = []
        for _ in range(len(self._members) + 1):  # one try more: the open connection may have ended meanwhile
            member = self._members[self._turn % len(self._members)]
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPSConnection(member, timeout=TIMEOUT_S, context=self._context)
                self._connection.request("POST", f"/v3/{path}", json.dumps(message))
                response = self._connection.getresponse()
                answer: dict[str, Any] = json.loads(response.read())
                if response.status == 200 or (gone and response.status == 404):
                    return answer
                problems.append(f"{member}: {answer.get('message', response.status)}")
            except ssl.SSLError as error:
                problems.append(f"{member}: {getattr(error, 'verify_message', '') or error.reason or error}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                problems.append(f"{member}: {getattr(error, 'strerror', None) or error or type(error).__name__}")
            self.close()
            self._turn += 1
        raise EtcdAway("; ".join(dict.fromkeys(problems)))

    def close(self) -> None:
        """Close the connection. The next question opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode("utf-8", "replace")
