"""A repository of templates with the names and ${...} of NVIDIA's all_models/inflight_batcher_llm, and ways to fill it.

The tensors are those of toolkit.repository, which have NVIDIA's names; the models are stubs.
"""

import re
from pathlib import Path
from string import Template

from tests.lint.repositories import AFTER, BEFORE, BLS, ENSEMBLE, FLAGSHIP, LLM, write_repository
from toolkit.releases.release import release_of

PLACEHOLDERS = {
    **{"gpt_model_type": "batching_strategy", "gpt_model_path": "engine_dir"},
    "encoder_model_path": "encoder_engine_dir",
}
"""Of the executor's parameters whose placeholder has another name than they."""
FIXED = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no", "executor_worker_path": "/opt/worker"}
PARAMETERS = {
    BEFORE: {
        **{"tokenizer_dir": "tokenizer_dir", "add_special_tokens": "add_special_tokens"},
        **{"multimodal_model_path": "multimodal_model_path", "gpt_model_path": "engine_dir"},
        "max_num_images": "max_num_images",
    },
    AFTER: {"tokenizer_dir": "tokenizer_dir", "skip_special_tokens": "skip_special_tokens"},
    BLS: {
        **{"accumulate_tokens": "accumulate_tokens", "tensorrt_llm_model_name": "tensorrt_llm_model_name"},
        "tensorrt_llm_draft_model_name": "tensorrt_llm_draft_model_name",
        "multimodal_encoders_name": "multimodal_encoders_name",
    },
}
COUNTS = {BEFORE: "preprocessing_instance_count", AFTER: "postprocessing_instance_count", BLS: "bls_instance_count"}


def llama_md(tokenizer: Path, engine: Path) -> dict[str, dict[str, str]]:
    """What NVIDIA's docs/llama.md fills in, by model."""
    batch = {"triton_max_batch_size": "64"}
    return {
        BEFORE: {**batch, "tokenizer_dir": str(tokenizer), "preprocessing_instance_count": "1"},
        AFTER: {**batch, "tokenizer_dir": str(tokenizer), "postprocessing_instance_count": "1"},
        BLS: {**batch, "decoupled_mode": "False", "bls_instance_count": "1", "accumulate_tokens": "False"},
        ENSEMBLE: batch,
        LLM: {
            **batch,
            **{"triton_backend": "tensorrtllm", "decoupled_mode": "False", "max_beam_width": "1"},
            **{"engine_dir": str(engine), "max_tokens_in_paged_kv_cache": "2560", "max_attention_window_size": "2560"},
            **{"kv_cache_free_gpu_mem_fraction": "0.5", "exclude_input_in_output": "True"},
            **{"enable_kv_cache_reuse": "False", "batching_strategy": "inflight_fused_batching"},
            "max_queue_size": "0",  # by fill_template.py itself, when nobody says it
        },
    }


def write_templates(tmp_path: Path, tiny_llama: Path, version: str) -> Path:
    folder = write_repository(tmp_path, tiny_llama, FLAGSHIP, version)
    executor = {name: PLACEHOLDERS.get(name, name) for name in release_of(version).backend_parameters}
    for model, parameters in {LLM: executor, **PARAMETERS, ENSEMBLE: {}}.items():
        path = folder / model / "config.pbtxt"
        text = re.sub(r"parameters {\s+key: [^}]*}\s+}\n", "", path.read_text())
        text = re.sub(r"max_batch_size: \d+", "max_batch_size: ${triton_max_batch_size}", text)
        text = re.sub(r"decoupled: true", "decoupled: ${decoupled_mode}", text)
        text = text.replace('"tensorrtllm"', '"${triton_backend}"')
        text = re.sub(r"max_queue_size: \d+", "max_queue_size: ${max_queue_size}", text)
        if model in COUNTS:
            text = re.sub(r"count: \d+", f"count: ${{{COUNTS[model]}}}", text)
        for name, placeholder in parameters.items():
            value = FIXED.get(name, f"${{{placeholder}}}")
            text += f'parameters: {{\n  key: "{name}"\n  value: {{\n    string_value: "{value}"\n  }}\n}}\n'
        path.write_text(text)
    return folder


def fill(folder: Path, values: dict[str, dict[str, str]]) -> None:
    for model, filled in values.items():
        path = folder / model / "config.pbtxt"
        path.write_text(Template(path.read_text()).safe_substitute(filled))
