"""config.json of a checkpoint through constructors that take what those of each release take, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path

import pytest

from toolkit.checkpoint import convert
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.engine.build_plan import BuildPlan
from toolkit.engine.source import find_source
from toolkit.errors import ToolkitError
from toolkit.files.artifacts import read_lock, record, write_lock
from toolkit.releases.release import RELEASES

GOLDEN = Path(__file__).parent / "golden" / "1.2" / "checkpoint.json"

# Read in NVIDIA/TensorRT-LLM and in both sides of the merge Ataraksia/TensorRT-LLM@a451bf93, which are 0.20.0 and
# 1.1.0rc6. 1.0 stands between them: it takes what both take.
MAPPING = (
    *("world_size", "rank", "gpus_per_node", "cp_size", "cp_config", "tp_size", "pp_size", "moe_cluster_size"),
    *("moe_tp_size", "moe_ep_size", "attn_tp_size", "attn_cp_size", "enable_attention_dp"),
)
MAPPING_ALSO = {
    "0.20": ("auto_parallel",),
    "1.0": ("auto_parallel",),
    "1.1": ("auto_parallel", "enable_lm_head_tp_in_adp"),
    "1.2": ("enable_lm_head_tp_in_adp",),
}
QUANT_CONFIG = (
    *("quant_algo", "kv_cache_quant_algo", "group_size", "smoothquant_val", "clamp_val", "use_meta_recipe"),
    *("has_zero_point", "pre_quant_scale", "exclude_modules"),
)
# LLaMAConfig and, under it, PretrainedConfig; whatever else they are given becomes an attribute.
REQUIRED = ("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads")
OPTIONAL = (
    *("vocab_size", "hidden_act", "logits_dtype", "norm_epsilon", "position_embedding_type", "rotary_embedding_dim"),
    *("max_position_embeddings", "num_key_value_heads", "intermediate_size", "mapping", "quantization", "head_size"),
    *("use_parallel_embedding", "embedding_sharding_dim", "mlp_bias", "attn_bias", "rotary_base", "rotary_scaling"),
)
BECOMES_AN_ATTRIBUTE = {"tie_word_embeddings"}

# What toolkits before this one wrote for every release.
EARLIER_MAPPING = {
    **{"world_size": 2, "gpus_per_node": 8, "cp_size": 1, "tp_size": 2, "pp_size": 1, "moe_tp_size": 2},
    **{"moe_cluster_size": 1, "moe_ep_size": 1, "attn_tp_size": 2, "attn_cp_size": 1, "cp_config": {}},
    **{"enable_attention_dp": False, "enable_lm_head_tp_in_adp": False},
}

everywhere = pytest.mark.parametrize("release", RELEASES)


def constructor(optional: tuple[str, ...], required: tuple[str, ...] = ()) -> Signature:
    arguments = [Parameter(name, Parameter.KEYWORD_ONLY) for name in required]
    return Signature([*arguments, *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in optional)])


@everywhere
def test_the_flagships_config_is_taken(release: str) -> None:
    config = json.loads(GOLDEN.read_text())
    assert set(config) >= BECOMES_AN_ATTRIBUTE
    named = {name: value for name, value in config.items() if name not in BECOMES_AN_ATTRIBUTE}
    taken = constructor(OPTIONAL, REQUIRED).bind(**named).arguments
    mapping = constructor(MAPPING + MAPPING_ALSO[release]).bind(**taken["mapping"]).arguments
    assert mapping["world_size"] == mapping["tp_size"] * mapping["pp_size"] * mapping["cp_size"]
    constructor(QUANT_CONFIG).bind(**taken["quantization"])


@everywhere
def test_the_table_says_the_same(release: str) -> None:
    keys = RELEASES[release].checkpoint_keys
    assert keys["mapping"] == {*MAPPING, *MAPPING_ALSO[release]}
    assert keys["quantization"] >= set(QUANT_CONFIG)


def deploy(folder: Path, model: Path, version: str, engine: str = "tensorrt") -> Deployment:
    file = folder / f"{version}-{engine}.yaml"
    file.write_text(
        f"engine: {{kind: {engine}, version: '{version}'}}\nmodel: {{path: {model}}}\nparallel: {{tp: 2}}\n"
        f"hardware: {{gpus: 2}}\nlimits: {{max_seq_len: 128}}\noutput: {folder}/out\n"
    )
    return load_deployment(file)


def written_by_an_earlier_toolkit(directory: Path) -> None:
    """Put the config.json of an earlier toolkit into a checkpoint, and into its lock."""
    config, lock = directory / "config.json", read_lock(directory)
    config.write_text(json.dumps({**json.loads(config.read_text()), "mapping": EARLIER_MAPPING}, indent=4))
    assert lock is not None
    write_lock(directory, replace(lock, outputs={**lock.outputs, config.name: record(config)}))


def source_of(deployment: Deployment, given: Path | None = None) -> str:
    return find_source(BuildPlan(deployment, given), lambda done, total: None).digest


def test_one_checkpoint_is_built_by_every_release(tmp_path: Path, tiny_llama: Path) -> None:
    deployments = [deploy(tmp_path, tiny_llama, release) for release in RELEASES]
    assert [convert(deployment) for deployment in deployments] == [True, False, False, False]
    assert len({source_of(deployment) for deployment in deployments}) == 1


@pytest.mark.parametrize("release", ["0.20", "1.0"])
def test_a_config_that_the_release_refuses_is_written_again(tmp_path: Path, tiny_llama: Path, release: str) -> None:
    latest, old = deploy(tmp_path, tiny_llama, "1.2"), deploy(tmp_path, tiny_llama, release)
    convert(latest)
    written_by_an_earlier_toolkit(latest.checkpoint_dir)
    weights = (latest.checkpoint_dir / "rank1.safetensors").stat()
    assert not convert(latest) and source_of(latest), "it is no reason to build the engines of 1.2 again"
    with pytest.raises(ToolkitError) as caught:
        source_of(old)
    assert str(caught.value) == (
        f"{latest.checkpoint_dir}/config.json: mapping.enable_lm_head_tp_in_adp: TensorRT-LLM {release} does not know "
        f"it; another release wrote it. Run: toolkit convert {old.file}"
    )
    assert convert(old) and source_of(old)
    assert (latest.checkpoint_dir / "rank1.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert not convert(old) and not convert(latest)


def test_a_checkpoint_of_another_tool_for_another_release(tmp_path: Path, tiny_llama: Path) -> None:
    converted = deploy(tmp_path, tiny_llama, "1.2")
    convert(converted)
    given = converted.checkpoint_dir.rename(tmp_path / "theirs")
    config = json.loads((given / "config.json").read_text())
    config["mapping"] |= {"auto_parallel": False}
    (given / "config.json").write_text(json.dumps(config))
    with pytest.raises(ToolkitError, match=r"theirs/config.json: mapping.auto_parallel: TensorRT-LLM 1.2 does not"):
        source_of(converted, given)
    assert source_of(deploy(tmp_path, tiny_llama, "1.1"), given)
    assert source_of(deploy(tmp_path, tiny_llama, "1.2", "rehearsal"), given)
