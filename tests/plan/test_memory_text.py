"""The memory of a plan, as text and as JSON."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from toolkit.cli.main import cli

pytestmark = pytest.mark.usefixtures("remembered")


def test_json_and_text_agree(flagship) -> None:
    file = flagship(workload={"rate": 3, "requests": 120, "output_tokens": 16})
    result = CliRunner().invoke(cli, ["plan", str(file), "--json"])
    data = json.loads(result.stdout)
    assert data["model"] == {
        "path": "/models/Meta-Llama-3-70B-Instruct",
        "dtype": "float16",
        "quantization": "none",
        "parameters": 70_553_706_496,
        "bytes": 141_107_412_992,
        "layers": 80,
    }
    assert data["parallel"]["world_size"] == 8
    text = CliRunner().invoke(cli, ["plan", str(file)]).stdout
    assert max(map(len, text.splitlines())) <= 100
    for figure in (
        "70,553,706,496",
        "17.895 GiB",
        "40,960 B",
        f"{data['memory']['kv_token_capacity']:,} tokens",
    ):
        assert figure in text


def test_what_does_not_fit_says_so(flagship) -> None:
    met = {"ttft_ms": {"p99": 60_000}}  # so that no remedy is looked for
    file = flagship(hardware__gpu_memory_gib=40, slo=met, workload={"rate": 3, "requests": 20, "output_tokens": 4})
    text = CliRunner().invoke(cli, ["plan", str(file)]).stdout
    assert "over the limit on the fullest GPU" in text
