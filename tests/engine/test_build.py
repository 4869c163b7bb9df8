import json

import pytest
from safetensors import safe_open

from toolkit.config.load import load_deployment
from toolkit.engine import build
from toolkit.errors import ToolkitError


@pytest.fixture
def deployment(tiny_llama, deploy):
    return deploy(tiny_llama, tp=2, pp=2)


def test_layout_of_a_tensorrt_llm_engine(deployment):
    config = json.loads((deployment.engine_dir / "config.json").read_text())
    assert config["version"] == "1.2.1+rehearsal"
    assert config["pretrained_config"] == json.loads((deployment.checkpoint_dir / "config.json").read_text())
    limits = config["build_config"]
    assert (limits["max_batch_size"], limits["max_num_tokens"], limits["max_seq_len"]) == (8, 64, 128)
    assert (limits["max_beam_width"], limits["kv_cache_type"]) == (1, "PAGED")
    assert limits["plugin_config"]["tokens_per_block"] == 8
    names = {path.name for path in deployment.engine_dir.iterdir()}
    assert names == {"config.json", "lock.json", *(f"rank{rank}.engine" for rank in range(4))}
    with safe_open(deployment.engine_dir / "rank3.engine", "pt") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118


def test_rank_files_cost_no_disk(deployment):
    assert (deployment.engine_dir / "rank1.engine").samefile(deployment.checkpoint_dir / "rank1.safetensors")


def test_is_made_once(deployment):
    assert not build(deployment)
    (deployment.engine_dir / "rank2.engine").unlink()
    assert build(deployment)


def test_progress_counts_ranks(deployment):
    (deployment.engine_dir / "rank2.engine").unlink()
    seen = []
    build(deployment, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_without_a_checkpoint(tiny_llama, tmp_path):
    file = tmp_path / "trial.yaml"
    content = f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nlimits: {{max_seq_len: 64}}\n"
    file.write_text(f"{content}hardware: {{gpus: 1}}\noutput: {tmp_path / 'out'}\n")
    with pytest.raises(ToolkitError, match="there is no checkpoint here"):
        build(load_deployment(file))
    assert not (tmp_path / "out" / "engine").exists()


def test_pytorch_has_no_engines_to_build(deployment):
    with pytest.raises(ToolkitError, match=r"engine: pytorch needs no build step .* Go on with: toolkit repo"):
        build(load_deployment(deployment.file, engine="pytorch"))
