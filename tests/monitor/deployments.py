"""Deployments for the tests of the monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-llama"
FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-2xtp4-fp16.yaml"


def rehearsal(folder: Path, **sections: Any) -> Deployment:
    """Two replicas of two ranks each, not built."""
    content: dict[str, Any] = {
        "engine": "rehearsal",
        "model": {"path": str(TINY)},
        "parallel": {"replicas": 2, "tp": 2},
        "limits": {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256},
        "hardware": {"gpu": "none"},
        "slo": {"ttft_ms": {"p50": 500, "p99": 1500}, "itl_ms": {"p99": 100}},
        "output": str(folder / "out"),
    }
    file = folder / "watched.yaml"
    file.write_text(yaml.safe_dump({**content, **sections}))
    return load_deployment(file)


def front_node(folder: Path, **sections: Any) -> Deployment:
    """A node that has a door and no replica."""
    tls = {"ca": "ca.pem", "certificate": "node.pem", "key": "node-key.pem"}
    gateway = {"role": "front", "discovery": "etcd://10.0.0.1:2379", "interface": "eth1", "node_tls": tls}
    return rehearsal(folder, gateway=gateway, **sections)
