from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.known_truth import KnownTruth, Settings

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def server():
    """A server that sends the first token after 200 ms and one each 20 ms after it."""
    with KnownTruth(Settings(ttft_ms=200, itl_ms=20)) as found:
        yield found


@pytest.fixture
def deployment(tmp_path: Path) -> Callable[..., Deployment]:
    """Makes the deployment of a server: deployment(server, prompts=[...], slo={...}, users=8, ...)."""

    def make(
        server: KnownTruth | None,
        prompts: list[str] | None = None,
        slo: Any = None,
        model: Path | None = None,
        **load: Any,
    ) -> Deployment:
        http, grpc = (int(url.rsplit(":", 1)[1]) for url in (server.http, server.grpc)) if server else (1, 2)
        if prompts:
            (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
            load["prompts"] = "prompts.txt"
        content = {
            "engine": "rehearsal",
            "model": {"path": str(model)} if model else {"path": "no-such-model", "config": MODEL},
            "limits": {"max_seq_len": 512 if model else 2048},
            "serving": {"http_port": http, "grpc_port": grpc, "metrics_port": 3},
            "slo": slo or {"ttft_ms": {"p99": 2000}, "tpot_ms": {"p50": 100}},
            "loadtest": {"users": 4, "requests": 16, "warmup_requests": 4, "max_tokens": 10, **load},
            "output": "out",
        }
        file = tmp_path / "deployment.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_deployment(file)

    return make
