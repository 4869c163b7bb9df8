from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.workload.prompts import QUESTIONS, as_chat, load_prompts


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_one_prompt_a_line_blank_lines_skipped(tmp_path):
    assert load_prompts(written(tmp_path, "p.txt", "one\n\n  two  \nthree")) == ("one", "  two  ", "three")


def test_jsonl_may_hold_line_breaks_and_other_fields(tmp_path):
    path = written(tmp_path, "p.jsonl", '{"prompt": "a\\nb", "id": 7}\n\n{"prompt": "ü"}\n')
    assert load_prompts(path) == ("a\nb", "ü")


def test_without_a_file_there_are_questions_of_our_own():
    assert load_prompts(None) == QUESTIONS
    assert len(set(QUESTIONS)) == len(QUESTIONS)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "p.jsonl:2: is not JSON"),
        ("p.jsonl", '{"text": "a"}', 'p.jsonl:1: has no "prompt"'),
        ("p.jsonl", '{"prompt": 3}', 'p.jsonl:1: has no "prompt"'),
        ("p.jsonl", '"a"', 'p.jsonl:1: has no "prompt"'),
        ("p.jsonl", "[" * 100_000, "p.jsonl:1: is not JSON"),
        ("p.jsonl", '{"prompt": "\\ud800"}', 'p.jsonl:1: has no "prompt" with text in it'),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", b"ok\n\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(tmp_path, name, content, complaint):
    with pytest.raises(ToolkitError) as error:
        load_prompts(written(tmp_path, name, content))
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_file_that_has_no_end(tmp_path, make):
    make(tmp_path / "p.txt")
    with pytest.raises(ToolkitError, match=r"p\.txt: is a (named pipe|device|directory), expected a file"):
        load_prompts(tmp_path / "p.txt")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ToolkitError, match=r"no such file.*loadtest\.prompts"):
        load_prompts(tmp_path / "none.txt")


def test_prompts_go_through_the_chat_template_of_the_model(tmp_path):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    written(tmp_path, "chat_template.jinja", template)
    assert as_chat(tmp_path, ("a", "b")) == ("<user>a<assistant>", "<user>b<assistant>")


def test_a_model_without_a_chat_template_is_warned_of_once(tmp_path, caplog):
    assert as_chat(tmp_path, ("a", "b", "c")) == ("a", "b", "c")
    assert len(caplog.records) == 1
