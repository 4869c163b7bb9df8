"""`python -m toolkit.gateway.gate SETTINGS`: judges each request for Envoy: key, rate, OpenAI's parameters.

Envoy sends it the request with its body (ext_authz). 200 lets the request in; any other answer goes to the client.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from pathlib import Path

import uvloop
from aiohttp import web

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

    async def judge(self, request: web.Request) -> web.Response:
        """200, or the answer for the client."""
        headers: dict[str, str] = {}
        if self._keys is not None:
            name = name_of(self._keys, request.headers.get("authorization", ""))
            if name is None:
                return _answer(request, Refusal(401, "the API key is missing or unknown"))
            if self._limit and (wait_s := self._limit.take(name)):
                refused = _answer(request, Refusal(429, f"the key {name} sends too many requests"))
                refused.headers["retry-after"] = str(math.ceil(wait_s))
                return refused
            headers[KEY_HEADER] = name
        if request.method == "POST" and request.path in KNOWN:
            try:
                body = json.loads(await request.read())
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                return _answer(request, Refusal(400, "the body is not valid JSON"))
            if problem := refusal(request.path, body, self._abilities):
                return _answer(request, problem)
        return web.Response(headers=headers)


def _answer(request: web.Request, problem: Refusal) -> web.Response:
    """The refusal in the form of the API that was asked."""
    body = problem.body() if request.path.startswith("/v1/") else {"error": problem.message}
    return web.json_response(body, status=problem.status)


def application(settings: GateSettings) -> web.Application:
    """The server. Raises ToolkitError for a bad keys file."""
    app = web.Application(client_max_size=(settings.max_body_mb << 20) + SPARE_BYTES)
    app.router.add_route("*", "/{path:.*}", Gate(settings).judge)
    return app


if __name__ == "__main__":
    end_with_starter()
    settings = GateSettings.read(sys.argv[1])
    uvloop.install()
    gc.freeze()  # or each full collection would look at what the imports made, for 6 ms
    web.run_app(application(settings), host=LOOPBACK, port=settings.port, access_log=None, print=None)
