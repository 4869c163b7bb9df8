"""YAML that would take all memory or time, or that Python would do something for, is one short line."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.files import yaml_file as yamlfile
from toolkit.files.yaml_file import MOST_LETTERS, MOST_VALUES, compose_yaml, parse_yaml, read_yaml

FLAGSHIP = Path(__file__).parents[2] / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
BOMB = "&a0 [x, x, x, x, x, x, x, x, x]"
for _n in range(1, 9):
    BOMB = f"&a{_n} [{BOMB}{f', *a{_n - 1}' * 8}]"
TOO_MUCH = "has more than 100,000 values or 4 MiB, an alias (*name) counted as what it stands for"
LARGE = {
    "an alias bomb in a typed field": (f"engine: {{kind: tensorrt, extra: {{a: {BOMB}}}}}", TOO_MUCH),
    "an alias bomb in a number": (f"parallel: {{tp: {BOMB}}}", TOO_MUCH),
    "an alias bomb of merges": ("a: &a {" + ", ".join(f"k{n}: 1" for n in range(900)) + "}\n"
        + "b: &b {<<: [" + "*a, " * 90 + "*a]}\nc: {<<: [*b, *b]}\n", TOO_MUCH),
    "aliases of a long text": (f"a: &a {'x' * 500_000}\nb: [{'*a, ' * 20}]", TOO_MUCH),
    "keys": ("".join(f"k{n}: 1\n" for n in range(300_000)), TOO_MUCH),
    "values": ("a: [" + "1," * 1_500_000 + "]", TOO_MUCH),
    "what stands inside itself": ("a: &a {b: *a}", "*a is inside of what it stands for"),
    "lists in lists": ("a: " + "[" * 1_000_000, "nested too deeply"),
    "blocks in blocks": ("\n".join(" " * n + "a:" for n in range(1500)), "nested too deeply"),
    "objects in objects": ("a: " + "{b: " * 70 + "}" * 70, "nested too deeply"),
    "a number in base 60": ("a: 1" + ":1" * 1_000_000, "a number has 2,000,001 characters, expected at most 100"),
    "such a fraction": ("a: 1" + ":1" * 200 + ".5", "a number has 403 characters, expected at most 100"),
    "digits": ("a: " + "9" * 5000, "a number has 5,000 characters, expected at most 100"),
    "a key that is there twice": (("k" * 1000 + ": 1\n") * 2, "k" * 200 + "... is given twice"),
    "a long alias": ("a: *" + "k" * 5000, "found undefined alias"),
    "a long type": (f"a: !<{'k' * 5000}> 1", "the type " + "k" * 200 + "... is not supported"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("text", "message"), LARGE.values(), ids=LARGE)
def test_what_is_too_much(tmp_path, text, message):
    """At once: each of these took minutes, all memory, or the process."""
    (tmp_path / "x.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(ToolkitError) as caught:
        load_deployment(tmp_path / "x.yaml")
    line = str(caught.value)
    assert re.match(rf"{re.escape(str(tmp_path))}/x\.yaml:\d+: is not valid YAML: {re.escape(message)}", line)
    assert line.isprintable() and len(line) < 1000
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!timestamp x", "the type tag:yaml.org,2002:timestamp is not supported: write the value alone"),
        ('a: !!int ""', "the type tag:yaml.org,2002:int is not supported"),
        ("a: !!python/object/apply:os.getcwd []", "the type tag:yaml.org,2002:python/object/apply:os.getcwd is not"),
        ("a: 2001-13-45", "month must be in 1..12"),
        ("a: {<<: 5}", "expected a mapping or list of mappings for merging, but found scalar"),
        ("a: =", "could not determine a constructor for the tag 'tag:yaml.org,2002:value'"),
        ("{a: {b: 1}}: 2", "the key {'a': {'b': 1}} is not text"),
        ("a: \x1b", "control characters are not allowed"),
        ("a: 1\n---\na: 2", "but found another document"),
    ],
)
def test_what_is_no_setting(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_python", [False, True])
def test_both_parsers_of_pyyaml_are_as_strict(monkeypatch, in_python):
    """In Python a lone half of a character is text; paths and names refuse it then."""
    if in_python:
        monkeypatch.setattr(yamlfile, "_Loader", yaml.SafeLoader)
    for text in ("[" * 20_000, BOMB, "a: !!int x", "&a [*a]"):
        with pytest.raises(ValueError):
            parse_yaml(text)


def test_what_people_write_is_read(tmp_path):
    text = "a: &a {x: 1, y: !!str 5}\nb: {<<: *a, z: [*a, 1.5, ~, yes, 2001-02-03]}\nc: '\xe9 \U0001f4a9'\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == yaml.safe_load(text.replace("!!str 5", "'5'"))
    assert parse_yaml("") is None and parse_yaml("8") == 8
    root = compose_yaml(text)
    assert [text[value.start_mark.index : value.end_mark.index] for _, value in root.value][-1] == "'\xe9 \U0001f4a9'"


def test_the_limits_are_far_from_what_is_shipped():
    for file in FLAGSHIP.parent.glob("*.yaml"):
        assert len(list(yaml.parse(file.read_text()))) < MOST_VALUES / 100
        assert file.stat().st_size < MOST_LETTERS / 100
