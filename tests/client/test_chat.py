"""The rendered prompt against transformers' own rendering of the same directory."""

import json
import shutil
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.model.chat_template import chat_prompt

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LIKE_LLAMA3 = """{{- bos_token }}
{%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}
{%- set ns = namespace(count=0) %}
Today is {{ strftime_now('%d %b %Y') }}.
{% for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
    {% if ns.count > 5 %}{% break %}{% endif %}
{%- endfor %}
{{ {'b': 'é<', 'a': [1, none]} | tojson }} {{ messages | tojson(indent=2) }} {{ eos_token }} {{ undefined_one }}
{% if add_generation_prompt %}
{% generation %}answer:{{ '\\n' }}{% endgeneration %}
{% endif %}
"""


def model(directory: Path, tiny_llama: Path, **config) -> Path:
    shutil.copy(tiny_llama / "tokenizer.json", directory)
    base = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps({**base, **config}))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("place", ["config", "list", "file", "own"])
@pytest.mark.parametrize("template", [CHATML, LIKE_LLAMA3], ids=["chatml", "llama3"])
def test_equals_transformers(tmp_path, tiny_llama, template, place):
    from transformers import AutoTokenizer

    directory = tiny_llama
    if place == "config":
        directory = model(tmp_path, tiny_llama, chat_template=template)
    elif place == "list":
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        directory = model(tmp_path, tiny_llama, chat_template=named)
    elif place == "file":
        directory = model(tmp_path, tiny_llama, chat_template="not this one")
        (directory / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    question = "  What's “2 < 3”? <|user|>\n"
    for system in (None, "Answer in French. "):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat_prompt(directory, question, system) == expected


def test_without_a_template_the_question_is_sent_and_that_is_said(tmp_path, tiny_llama, caplog):
    assert chat_prompt(model(tmp_path, tiny_llama), "Hello?") == "Hello?"
    assert "no chat template" in caplog.text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% if %}", "the chat template failed"),
        ("{{ messages.append(1) }}", "the chat template failed"),
        ("{{ ''.__class__.__mro__ }}", "the chat template failed"),
        ("{{ messages[0]['content'] + 1 }}", "the chat template failed"),
    ],
)
def test_a_template_that_fails_is_one_line(tmp_path, tiny_llama, template, words):
    with pytest.raises(ToolkitError, match=words) as caught:
        chat_prompt(model(tmp_path, tiny_llama, chat_template=template), "Hello?", "Be kind.")
    assert "\n" not in str(caught.value) and "--raw" in str(caught.value)


def test_configuration_that_cannot_be_read(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ToolkitError, match=r"tokenizer_config\.json: is not valid JSON"):
        chat_prompt(tmp_path, "Hello?")
