"""Settings changed in the text of a YAML: what the text then means, and that everything else stays."""

import difflib
from pathlib import Path

import pytest
import yaml

from toolkit.config.edit_yaml import edited, write_edited
from toolkit.config.load import changed, load_deployment
from toolkit.errors import ToolkitError

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
TEXT = """\
# a deployment
engine: {kind: tensorrt, workers: 2}   # on GPUs

limits:
  max_sequences: 64   # in all
  # the longest
  max_seq_len: 8192

workload:
  prompt_tokens:
    min: 16
    max: 48
  # answers
  output_tokens: 128
slo:
  ttft_ms: {p99: 1500}"""


def lines_changed(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[:1] in "+-"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"limits.max_sequences": 32},
            ["-   max_sequences: 64   # in all", "+   max_sequences: 32   # in all"],
        ),
        ({"limits.max_num_tokens": 256}, ["+   max_num_tokens: 256"]),
        (
            {"workload.prompt_tokens": 1024},
            ["-   prompt_tokens:", "-     min: 16", "-     max: 48", "+   prompt_tokens: 1024"],
        ),
        (
            {"workload.output_tokens": {"mean": 9, "cv": 1.5}},
            ["-   output_tokens: 128", "+   output_tokens: {mean: 9, cv: 1.5}"],
        ),
        ({"slo.requests_per_s": 8}, ["+   requests_per_s: 8"]),
        ({"parallel.tp": 4}, ["+ parallel: {tp: 4}"]),
        (
            {"engine.kind": "rehearsal"},
            [
                "- engine: {kind: tensorrt, workers: 2}   # on GPUs",
                "+ engine: {kind: rehearsal, workers: 2}   # on GPUs",
            ],
        ),
        (
            {"engine.version": "1.2.1"},
            [
                "- engine: {kind: tensorrt, workers: 2}   # on GPUs",
                "+ engine: {kind: tensorrt, workers: 2, version: 1.2.1}   # on GPUs",
            ],
        ),
    ],
)
def test_one_setting_changes_its_own_lines_only(change, lines):
    after = edited(TEXT, change)
    assert sorted(lines_changed(TEXT, after)) == sorted(lines)
    assert yaml.safe_load(after) == changed(yaml.safe_load(TEXT), change)


def test_several_at_once():
    changes = {"limits.max_sequences": 8, "limits.max_num_tokens": 256, "parallel.tp": 2, "parallel.pp": 4}
    assert yaml.safe_load(edited(TEXT, changes)) == changed(yaml.safe_load(TEXT), changes)


def test_a_text_with_anchors_means_the_same_though_its_form_goes():
    text = "a: &x {p: 1}\nb: *x\n"
    assert yaml.safe_load(edited(text, {"b.p": 2})) == {"a": {"p": 1}, "b": {"p": 2}}


def test_what_is_written_is_the_changed_deployment(tmp_path):
    """In another folder: relative paths lead where they led, and it has a name of its own."""
    (tmp_path / "there").mkdir()
    source, target = tmp_path / "there" / "mine.yaml", tmp_path / "new one.yaml"
    text = FLAGSHIP.read_text().replace("/models/Meta-Llama-3-70B-Instruct", "models/llama")
    source.write_text(f"name: mine\n{text}")
    write_edited(source, target, {"limits.max_num_tokens": 256})
    found, before = load_deployment(target), load_deployment(source)
    assert (found.name, found.limits.max_num_tokens, found.model.path) == ("new-one", 256, before.model.path)
    assert found.output != before.output and "# in flight over all four micro-batches" in target.read_text()


def test_every_path_of_a_yaml_leads_where_it_led(tmp_path):
    """Also one of a list, and one in a section of a section."""
    (tmp_path / "there").mkdir()
    source, target = tmp_path / "there" / "mine.yaml", tmp_path / "other.yaml"
    tls = {"certificate": "tls/door.pem", "key": "/etc/door.key"}
    content = {**yaml.safe_load(FLAGSHIP.read_text()), "gateway": {"tls": tls, "keys_file": "keys"}}
    source.write_text(yaml.safe_dump({**content, "recovery": {"fallback": ["a.yaml", "b/c.yaml"]}}))
    write_edited(source, target, {"limits.max_num_tokens": 256})
    written = yaml.safe_load(target.read_text())
    there = tmp_path / "there"
    assert written["gateway"] == {
        "tls": {"certificate": str(there / "tls/door.pem"), "key": "/etc/door.key"},
        "keys_file": str(there / "keys"),
    }
    assert written["recovery"]["fallback"] == [str(there / "a.yaml"), str(there / "b/c.yaml")]


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path):
    target = tmp_path / "there.yaml"
    target.write_text("mine")
    with pytest.raises(ToolkitError, match=r"there.yaml: is already there. Give another FILE, or --force"):
        write_edited(FLAGSHIP, target, {"limits.max_num_tokens": 256})
    assert target.read_text() == "mine"
    write_edited(FLAGSHIP, target, {"limits.max_num_tokens": 256}, force=True)
    assert load_deployment(target).limits.max_num_tokens == 256
