"""`python -m toolkit.gateway.gate SETTINGS`: judges each request for Envoy: key, rate, OpenAI's parameters.

Envoy sends it the request with its body (ext_authz). 200 lets the request in; any other answer goes to the client.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import sys
from pathlib import Path

import uvloop

from toolkit.gateway.gate_http import Answer, Connection, Request
from toolkit.gateway.gate_settings import KEY_HEADER, GateSettings
from toolkit.gateway.held import end_with_starter
from toolkit.gateway.keys import RateLimit, name_of, read_keys
from toolkit.gateway.openai_rules import KNOWN, Abilities, Refusal, refusal
from toolkit.gateway.places import LOOPBACK

SPARE_BYTES = 1 << 20


class Gate:
    """Judges requests for one deployment."""

    def __init__(self, settings: GateSettings) -> None:
        self._keys = read_keys(Path(settings.keys_file)) if settings.keys_file else None
        self._limit = RateLimit(settings.requests_per_minute) if settings.requests_per_minute else None
        self._abilities = Abilities(settings.model, tools=settings.tools)

    def judge(self, request: Request) -> Answer:
        """200, or the answer for the client."""
        headers: dict[str, str] = {}
        if self._keys is not None:
            name = name_of(self._keys, request.headers.get("authorization", ""))
            if name is None:
                return _refused(request, Refusal(401, "the API key is missing or unknown"))
            if self._limit and (wait_s := self._limit.take(name)):
                refused = _refused(request, Refusal(429, f"the key {name} sends too many requests"))
                refused.headers["retry-after"] = str(math.ceil(wait_s))
                return refused
            headers[KEY_HEADER] = name
        if request.method == "POST" and request.path in KNOWN:
            try:
                body = json.loads(request.body)
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                return _refused(request, Refusal(400, "the body is not valid JSON"))
            if problem := refusal(request.path, body, self._abilities):
                return _refused(request, problem)
        return Answer(headers=headers)


def _refused(request: Request, problem: Refusal) -> Answer:
    """The refusal in the form of the API that was asked."""
    body = problem.body() if request.path.startswith("/v1/") else {"error": problem.message}
    return Answer(problem.status, {"content-type": "application/json"}, json.dumps(body).encode())


async def serve(settings: GateSettings) -> None:
    """Serve until killed. Raises ToolkitError for a bad keys file."""
    gate, most = Gate(settings), (settings.max_body_mb << 20) + SPARE_BYTES
    listening = asyncio.get_running_loop().create_server(lambda: Connection(gate.judge, most), LOOPBACK, settings.port)
    gc.freeze()  # or each full collection would look at what the imports made, for milliseconds
    await (await listening).serve_forever()


if __name__ == "__main__":
    end_with_starter()
    uvloop.install()
    asyncio.run(serve(GateSettings.read(sys.argv[1])))
