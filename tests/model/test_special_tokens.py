"""The tokens that a directory names, and its chat templates, against transformers' reading of the same directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.repository.tokenizers_for_tests import sentence_piece_tokenizer
from toolkit.errors import ToolkitError
from toolkit.model.chat_template import ChatTemplate
from toolkit.model.special_tokens import NAMES, eos_token_ids, special_tokens

os.environ.setdefault("HF_HUB_OFFLINE", "1")

MESSAGES = [{"role": "user", "content": "Hello"}]
TEMPLATE = "{{ bos_token }}[{{ messages[0]['content'] }}]{{ eos_token }}|{{ unk_token }}|{{ pad_token }}"
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
ADDED = {"__type": "AddedToken", "content": "<|eot|>", "lstrip": False, "special": True}
IN_THE_MAP = {"bos_token": "<|begin|>", "eos_token": {"content": "<|eot|>", "lstrip": False, "normalized": False}}

Files = dict[str, Any]
"""By path in the directory: text, or what is written as JSON."""


def directory(folder: Path, tiny_llama: Path, files: Files) -> Path:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny_llama / name, folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


TOKENS: dict[str, Files] = {
    "none": {"tokenizer_config.json": FAST},
    "no configuration at all": {"chat_template.jinja": TEMPLATE},
    "text": {"tokenizer_config.json": {**FAST, "bos_token": "<|begin|>", "eos_token": "<|end|>"}},
    "objects": {"tokenizer_config.json": {**FAST, "eos_token": ADDED, "pad_token": ADDED}},
    "null": {"tokenizer_config.json": {**FAST, "bos_token": None, "eos_token": "<|end|>"}},
    "map alone": {"tokenizer_config.json": FAST, "special_tokens_map.json": IN_THE_MAP},
    "map without configuration": {"chat_template.jinja": TEMPLATE, "special_tokens_map.json": IN_THE_MAP},
    "map over configuration": {
        "tokenizer_config.json": {**FAST, "bos_token": "<|a|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"},
        "special_tokens_map.json": {**IN_THE_MAP, "pad_token": None},
    },
    "map beside added_tokens_decoder": {
        "tokenizer_config.json": {**FAST, "eos_token": "<|end|>", "added_tokens_decoder": {}},
        "special_tokens_map.json": IN_THE_MAP,
    },
    "Llama's class over a tokenizer of bytes": {"tokenizer_config.json": {**FAST, "tokenizer_class": "LlamaTokenizer"}},
}


@pytest.mark.parametrize("files", TOKENS.values(), ids=TOKENS)
def test_tokens_are_those_of_transformers(tmp_path: Path, tiny_llama: Path, files: Files) -> None:
    folder = directory(tmp_path, tiny_llama, files)
    theirs = transformers_tokenizer(folder)
    assert special_tokens(folder) == {name: getattr(theirs, name) for name in NAMES if getattr(theirs, name)}
    assert ChatTemplate(folder).render(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False)
    own = [] if theirs.eos_token_id is None else [theirs.eos_token_id]
    assert eos_token_ids(folder, 512) == tuple(dict.fromkeys([1, *own]))  # config.json of the tiny Llama has 1


@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("tokens", [{}, {"bos_token": None}, {"eos_token": "<unk>"}], ids=str)
def test_tokens_of_llama_2(tmp_path: Path, tiny_llama: Path, class_name: str, tokens: dict[str, Any]) -> None:
    files = {"tokenizer_config.json": {**FAST, "tokenizer_class": class_name, **tokens}}
    folder = directory(tmp_path, tiny_llama, files)
    sentence_piece_tokenizer(folder / "tokenizer.json")
    theirs = transformers_tokenizer(folder)
    assert special_tokens(folder) == {name: getattr(theirs, name) for name in NAMES if getattr(theirs, name)}
    assert ChatTemplate(folder).render(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False)


ONE = [{"name": "chat", "template": "chat " + TEMPLATE}]
BOTH = [*ONE, {"name": "default", "template": "default " + TEMPLATE}]
RAG = {"additional_chat_templates/rag.jinja": "rag " + TEMPLATE}
TEMPLATES: dict[str, Files] = {
    "one": {"tokenizer_config.json": FAST},
    "empty": {"tokenizer_config.json": {**FAST, "chat_template": ""}},
    "list": {"tokenizer_config.json": {**FAST, "chat_template": BOTH}},
    "list twice the same": {
        "tokenizer_config.json": {**FAST, "chat_template": [BOTH[1], {**ONE[0], "name": "default"}]}
    },
    "list without default": {"tokenizer_config.json": {**FAST, "chat_template": ONE}},
    "object": {"tokenizer_config.json": {**FAST, "chat_template": {"default": TEMPLATE, "tool_use": "tools"}}},
    "object without default": {"tokenizer_config.json": {**FAST, "chat_template": {"chat": TEMPLATE}}},
    "file over configuration": {"tokenizer_config.json": FAST, "chat_template.jinja": "file " + TEMPLATE},
    "folder and file": {"tokenizer_config.json": FAST, "chat_template.jinja": "file " + TEMPLATE, **RAG},
    "folder alone": {"tokenizer_config.json": FAST, **RAG},
    "folder with default": {"chat_template.jinja": "file", "additional_chat_templates/default.jinja": TEMPLATE},
}


@pytest.mark.parametrize("name", [None, "chat", "default", "rag"])
@pytest.mark.parametrize("files", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_are_those_of_transformers(tmp_path: Path, tiny_llama: Path, files: Files, name: str | None) -> None:
    folder = directory(tmp_path, tiny_llama, files)
    theirs = transformers_tokenizer(folder)
    several = theirs.chat_template if isinstance(theirs.chat_template, dict) else {"default": theirs.chat_template}
    if (name or "default") in several:
        chosen = several[name or "default"]
        expected = theirs.apply_chat_template(MESSAGES, chat_template=chosen, tokenize=False) if chosen else ""
        assert ChatTemplate(folder, name).render(MESSAGES) == expected
        return
    with pytest.raises(ToolkitError) as caught:
        ChatTemplate(folder, name)
    text, names = str(caught.value), ", ".join(sorted(several))
    assert "\n" not in text and str(folder) in text
    if name is None:
        first = min(several)
        assert f"has the chat templates {names}, but none is called default" in text
        assert text.endswith(f"Name one in the YAML: model.chat_template: {first}.")
    else:
        assert text.endswith(f"model.chat_template: the model has no chat template {name!r}. Its templates: {names}.")


def test_a_name_for_a_model_without_templates(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(ToolkitError, match=r"the model has no chat template 'chat'\. Its templates: none\."):
        ChatTemplate(directory(tmp_path, tiny_llama, {}), "chat")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": {"chat_template": 5}}, "chat_template: expected text, or a list of"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "a"}]}}, "chat_template: expected text, or a list of"),
        ({"tokenizer_config.json": {"chat_template": ["a"]}}, "chat_template: expected text, or a list of"),
        ({"tokenizer_config.json": {"eos_token": ["<|end|>"]}}, "eos_token: expected the text of a token"),
        ({"special_tokens_map.json": "{"}, r"special_tokens_map\.json: is not valid JSON"),
        ({"tokenizer_config.json": "[]"}, r"tokenizer_config\.json: holds a JSON list"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, tiny_llama: Path, files: Files, message: str) -> None:
    with pytest.raises(ToolkitError, match=message) as caught:
        ChatTemplate(directory(tmp_path, tiny_llama, files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", ["<|nope|>", "[PAD]"])
def test_an_eos_token_that_the_model_does_not_have_never_comes(tmp_path: Path, tiny_llama: Path, token: str) -> None:
    """Transformers would give it the id 512, one past the vocabulary."""
    folder = directory(tmp_path, tiny_llama, {"tokenizer_config.json": {**FAST, "eos_token": token}})
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 512, "content": "[PAD]"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert eos_token_ids(folder, 512) == (1,)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([2, 7], 5, (2, 7, 5, 1)),
        (None, None, (1,)),
        ([], 1, (1,)),
        (7, [7, 2], (7, 2, 1)),
        ("1", 1, "generation_config.json: eos_token_id: expected whole numbers, got '1'"),
        ([True], 1, "generation_config.json: eos_token_id: expected whole numbers, got [True]"),
        ([1.0], 1, "generation_config.json: eos_token_id: expected whole numbers, got [1.0]"),
        ([1], 512, "/config.json: eos_token_id: 512 is not a token of the model, expected 0 to 511"),
    ],
    ids=str,
)
def test_ids_that_end_a_text_are_united(
    tmp_path: Path, tiny_llama: Path, generation: object, config: object, expected: tuple[int, ...] | str
) -> None:
    folder = directory(
        tmp_path,
        tiny_llama,
        {
            "tokenizer_config.json": {**FAST, "eos_token": "<|end|>"},
            "generation_config.json": {"eos_token_id": generation},
            "config.json": {"eos_token_id": config},
        },
    )
    if isinstance(expected, tuple):
        assert eos_token_ids(folder, 512) == expected
        return
    with pytest.raises(ToolkitError) as caught:
        eos_token_ids(folder, 512)
    assert expected in str(caught.value)
