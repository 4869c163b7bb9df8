"""NVIDIA's templates, filled as its documentation says: they start and serve, so that nothing is an error."""

import re

import pytest

from tests.lint.repositories import AFTER, BEFORE, BLS, DEFAULT, ENSEMBLE, LLM, START, edit, write_engine
from tests.lint.templates import fill, llama_md, write_templates
from toolkit.lint import lint
from toolkit.releases.release import RELEASES

NEEDED = {
    "triton_max_batch_size",
    "tokenizer_dir",
    "preprocessing_instance_count",
    "postprocessing_instance_count",
    "bls_instance_count",
    "decoupled_mode",
    "triton_backend",
    "engine_dir",
    "batching_strategy",
    "max_queue_size",
}
"""The server does not start without. All else that llama.md fills may be left."""


@pytest.fixture
def templates(tmp_path, tiny_llama):
    return write_templates(tmp_path, tiny_llama, "1.2.1")


@pytest.fixture
def values(templates):
    return llama_md(templates / "preprocessing/1/tokenizer", templates.parent / "engine")


@pytest.mark.parametrize("release", RELEASES)
def test_filled_as_llama_md_says_nothing_is_an_error(tmp_path, tiny_llama, release):
    version = RELEASES[release].images[0].version
    folder = write_templates(tmp_path, tiny_llama, version)
    fill(folder, llama_md(folder / "preprocessing/1/tokenizer", tmp_path / "engine"))
    found = lint(folder)
    assert {one.effect for one in found} == {DEFAULT}, found
    (left,) = (one for one in found if one.kind == "placeholder")
    count = int(re.match(r"(\d+) parameters are still", left.what)[1])
    assert count > 30 and left.path == folder and "postprocessing: skip_special_tokens" in left.what


def test_streaming_needs_both_models_that_stream(templates, values):
    values[LLM]["decoupled_mode"] = "True"
    fill(templates, values)
    (found,) = (one for one in lint(templates) if one.level == "error")
    assert found.kind == "decoupled" and "Triton refuses the calls of single prompts" in found.what
    edit(templates / BLS / "config.pbtxt", "decoupled: False", "decoupled: True")
    assert "error" not in {one.level for one in lint(templates)}


def test_each_key_that_is_forgotten_is_judged_for_itself(templates, values):
    texts = {model: (templates / model / "config.pbtxt").read_text() for model in values}
    for model, key in [(name, key) for name, filled in values.items() for key in filled]:
        for name, text in texts.items():
            (templates / name / "config.pbtxt").write_text(text)
        fill(templates, {**values, model: {name: value for name, value in values[model].items() if name != key}})
        errors = [one for one in lint(templates) if one.level == "error"]
        assert bool(errors) == (key in NEEDED), (key, errors)
        assert {one.kind for one in errors} <= {"placeholder"}, (key, errors)


def test_templates_that_nobody_filled_say_all_that_must_be(templates):
    found = lint(templates, write_engine(templates.parent / "other"))
    said = {one.path.parent.name: "" for one in found}
    for one in found:
        if one.effect == START:
            said[one.path.parent.name] += one.what
    assert set(said) >= {LLM, BEFORE, AFTER, BLS, ENSEMBLE}
    assert all("${triton_max_batch_size}" in said[model] for model in (LLM, BEFORE, AFTER, BLS, ENSEMBLE))
    for key in ("triton_backend", "decoupled_mode", "batching_strategy", "engine_dir", "max_queue_size"):
        assert f"${{{key}}}" in said[LLM], key
    assert "tokenizer_dir" in said[BEFORE] and "${postprocessing_instance_count}" in said[AFTER]


def test_tensors_by_their_names_of_0_19_are_warnings(templates, values):
    fill(templates, values)
    for model in (LLM, ENSEMBLE, BLS):
        path = templates / model / "config.pbtxt"
        text = re.sub(r'"seed"', '"random_seed"', path.read_text())
        path.write_text(re.sub(r'"min_tokens"', '"min_length"', text))
    found = lint(templates)
    assert "error" not in {one.level for one in found}
    assert len([one for one in found if one.kind == "renamed"]) == 6
