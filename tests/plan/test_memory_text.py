"""The memory of a plan, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from toolkit.cli.main import cli

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def test_json_and_text_agree(flagship) -> None:
    file = flagship(workload={"rate": 8, "requests": 120, "output_tokens": 16})
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


def test_what_does_not_fit_says_so(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(FLAGSHIP.read_text().replace("gpu_memory_gib: 79.6", "gpu_memory_gib: 40"))
    text = CliRunner().invoke(cli, ["plan", str(file)]).stdout
    assert "over the limit on the fullest GPU" in text
