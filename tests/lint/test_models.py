"""preprocessing, postprocessing and tensorrt_llm_bls: what they are told, ours and NVIDIA's own."""

import re
from pathlib import Path

import pytest

from tests.lint.repositories import (
    AFTER,
    ANSWERS,
    BEFORE,
    BLS,
    DEFAULT,
    LLM,
    START,
    check_found,
    config,
    edit,
    parameter,
)
from toolkit.lint import lint

NVIDIAS = {
    "preprocessing": {
        "tokenizer_dir": "../preprocessing/1/tokenizer",
        "add_special_tokens": "True",
        "multimodal_model_path": "",
        "gpt_model_path": "",
        "max_num_images": "",
    },
    "postprocessing": {"tokenizer_dir": "../preprocessing/1/tokenizer", "skip_special_tokens": "T"},
    "tensorrt_llm_bls": {
        "accumulate_tokens": "true",
        "tensorrt_llm_model_name": "tensorrt_llm",
        "tensorrt_llm_draft_model_name": "",
        "multimodal_encoders_name": "${multimodal_encoders_name}",
    },
}


def nvidias(change=lambda repository: None):
    """With the parameters of NVIDIA's own Python models, and then a change."""

    def both(repository: Path) -> None:
        for model, values in NVIDIAS.items():
            path = repository / model / "config.pbtxt"
            text = re.sub(r"^parameters {$.*?^}$\n", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
            for name, value in values.items():
                text += f'parameters {{\n  key: "{name}"\n  value {{\n    string_value: "{value}"\n  }}\n}}\n'
            path.write_text(text)
        edit(repository / BLS / "config.pbtxt", "count: 1", "count: 64")
        change(repository)

    return both


def cpu_only(value: str):
    more = f'parameters {{ key: "FORCE_CPU_ONLY_INPUT_TENSORS" value {{ string_value: "{value}" }} }}'
    return config(BEFORE, r"\Z", more)


def no_end(repository: Path) -> None:
    """A tokenizer without an eos_token, of the class that knows none itself."""
    text = '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}'
    (repository / BEFORE / "1/tokenizer/tokenizer_config.json").write_text(text)


def executor_renamed(repository: Path) -> None:
    (repository / LLM).rename(repository / "llm")
    parameter("tensorrt_llm_model_name", "", BLS)(repository)


BROKEN = [
    ("bls-model", ANSWERS, nvidias(executor_renamed), "is not set, and its default, tensorrt_llm, does not exist"),
    (
        "bls-model",
        ANSWERS,
        parameter("tensorrt_llm_model_name", "llama", BLS),
        "tensorrt_llm_model_name llama is not a model",
    ),
    (
        "bls-model",
        ANSWERS,
        nvidias(parameter("tensorrt_llm_draft_model_name", "tiny", BLS)),
        "draft_model_name tiny is no",
    ),
    ("bls-model", ANSWERS, nvidias(parameter("multimodal_encoders_name", "eyes", BLS)), "encoders_name eyes is no"),
    ("parameter-unknown", DEFAULT, config(BLS, '"accumulate_tokens"', '"accumulate_token"'), "mean accumulate_tokens?"),
    (
        "parameter-unknown",
        DEFAULT,
        config(BEFORE, '"pad_token_id"', '"max_num_images"'),
        "preprocessing of toolkit repo",
    ),
    (
        "parameter-unknown",
        DEFAULT,
        nvidias(config(AFTER, '"skip_special_tokens"', '"skip_specials"')),
        "postprocessing of 1.2",
    ),
    (
        "parameter-value",
        START,
        parameter("vocab_size", "many", BEFORE),
        "vocab_size: expected a whole number of at least 1",
    ),
    (
        "parameter-value",
        START,
        parameter("eos_token_ids", "1;2", BEFORE),
        "eos_token_ids: expected whole numbers with commas",
    ),
    (
        "parameter-value",
        DEFAULT,
        parameter("skip_special_tokens", "yes", AFTER),
        "expected true, false, 1 or 0, got 'yes'",
    ),
    (
        "parameter-value",
        DEFAULT,
        parameter("accumulate_tokens", "on", BLS),
        "accumulate_tokens: expected true, false, 1 or 0",
    ),
    (
        "parameter-value",
        DEFAULT,
        nvidias(parameter("add_special_tokens", "on", BEFORE)),
        "got 'on': the model takes its default",
    ),
    (
        "parameter-value",
        DEFAULT,
        nvidias(parameter("max_num_images", "0", BEFORE)),
        "max_num_images: expected a whole number",
    ),
    ("parameter-value", DEFAULT, nvidias(parameter("accumulate_tokens", "y", BLS)), "accumulate_tokens: expected true"),
    ("eos-none", START, nvidias(no_end), "has no eos_token, which NVIDIA's preprocessing needs"),
    ("tokenizer", DEFAULT, nvidias(parameter("tokenizer_dir", "meta-llama/Llama-2-7b-hf", AFTER)), "taken for a name"),
    ("parameter-missing", START, config(AFTER, '"tokenizer_dir"', '"tokenizer"'), "tokenizer_dir is missing"),
    (
        "parameter-missing",
        START,
        config(BLS, '"tensorrt_llm_model_name"', '"llm"'),
        "tensorrt_llm_model_name is missing",
    ),
    (
        "parameter-missing",
        START,
        config(LLM, '"guided_decoding_backend"', '"guidance"'),
        "guided_decoding_backend is missing",
    ),
    ("parameter-missing", START, nvidias(config(BEFORE, '"multimodal_model_path"', '"images"')), "it may be empty"),
    (
        "accumulate-tokens",
        DEFAULT,
        nvidias(parameter("accumulate_tokens", "", BLS)),
        "each chunk of a stream is decoded alone",
    ),
    (
        "bls-instances",
        DEFAULT,
        nvidias(config(BLS, "count: 64", "count: 4")),
        "4 instances, each with one request at a time",
    ),
    ("parameter-value", START, nvidias(cpu_only("maybe")), "FORCE_CPU_ONLY_INPUT_TENSORS: expected yes or no"),
]


def test_parameters_of_nvidia_s_own_models_are_good(repository):
    nvidias()(repository)
    assert {one.kind for one in lint(repository)} == {"placeholder"}
    parameter("multimodal_encoders_name", "", BLS)(repository)
    assert lint(repository) == []
    cpu_only("yes")(repository)
    assert lint(repository) == []
    for words in ("YES", "f", "0"):
        parameter("add_special_tokens", words, BEFORE)(repository)
        assert lint(repository) == []


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_each_way_to_break_it_is_found(repository, kind, effect, change, says):
    change(repository)
    check_found(repository, kind, effect, says)
