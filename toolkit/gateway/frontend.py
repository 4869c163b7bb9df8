"""`python -m toolkit.gateway.frontend PORT RETRIES PROMPT_WEIGHT`: OpenAI's API on loopback, by NVIDIA's Dynamo.

Chat template, tokens and text, the choice of a replica by the prompt's cached prefix and its load, and the migration of
streams are Dynamo's. Workers announce themselves.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from dynamo.llm import (  # type: ignore[import-not-found,attr-defined,unused-ignore]
    EngineType,
    EntrypointArgs,
    KvRouterConfig,
    RouterConfig,
    RouterMode,
    make_engine,
    run_input,
)
from dynamo.runtime import DistributedRuntime  # type: ignore[import-not-found,attr-defined,unused-ignore]

from toolkit.gateway.dynamo import LOOPBACK, discovery
from toolkit.gateway.held import end_with_starter
from toolkit.gateway.keepalive import prepare
from toolkit.gateway.own_sockets import send_at_once


async def serve(port: int, migrations: int, prompt_weight: float) -> None:
    """Serve until killed.

    migrations: how often one stream may continue elsewhere.
    prompt_weight: what a block of a prompt that is not cached counts, where a block that a request holds counts 1.
    """
    runtime = DistributedRuntime(asyncio.get_running_loop(), discovery(), "tcp")
    # Triton tells nobody which blocks it holds, so the router remembers what it sent where. Dynamo 1.6.1 warns that one
    # of its parts does not know lru yet; tests/gateway/test_front_end.py needs it all the same.
    kv = KvRouterConfig(use_kv_events=False, router_approximate_cache_policy="lru", prefill_load_scale=prompt_weight)
    router = RouterConfig(RouterMode.KV, kv)
    options = EntrypointArgs(
        EngineType.Dynamic, http_host=LOOPBACK, http_port=port, router_config=router, migration_limit=migrations
    )
    send_at_once(port)
    await run_input(runtime, "http", await make_engine(runtime, options))


if __name__ == "__main__":
    end_with_starter()
    prepare()
    uvloop.install()
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
