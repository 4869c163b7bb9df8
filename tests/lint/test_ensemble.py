"""Tensors between the steps of the ensemble: each way to break them is found."""

import pytest

from tests.lint.repositories import ANSWERS, ENSEMBLE, START, check_found, config
from toolkit.lint import lint

BROKEN = [
    *(
        # Seen on a real Triton: it starts, and each request fails with "unexpected shape" or an exception.
        ("batch-size", ANSWERS, config(name, r"max_batch_size: \d+\n", ""), "the batch dimension")
        for name in ("preprocessing", "tensorrt_llm_bls")
    ),
    (
        "step-model",
        START,
        config(ENSEMBLE, 'model_name: "postprocessing"', 'model_name: "post"'),
        "step post is not a model",
    ),
    ("step-input", START, config(ENSEMBLE, 'key: "QUERY"', 'key: "QUESTION"'), "has no input QUESTION"),
    ("step-input-missing", START, config(ENSEMBLE, 'key: "QUERY"', 'key: "END_ID"'), "its input QUERY is required"),
    (
        "step-source",
        START,
        config(ENSEMBLE, 'value: "_TOKENS_BATCH"', 'value: "_TOKEN_BATCH"'),
        "TOKENS_BATCH comes from",
    ),
    ("step-output", START, config(ENSEMBLE, 'key: "OUTPUT"', 'key: "TEXT"'), "has no output TEXT"),
    (
        "ensemble-output",
        START,
        config(ENSEMBLE, 'value: "text_output"', 'value: "text_out"'),
        "no step makes the output text_output",
    ),
    (
        "ensemble-type",
        START,
        config("preprocessing", '(name: "QUERY"\\s+data_type: )TYPE_STRING', r"\1TYPE_INT32"),
        "QUERY is",
    ),
    (
        "ensemble-section",
        START,
        config(ENSEMBLE, r"\Z", "instance_group { count: 1 }"),
        "instance_group is not allowed",
    ),
    (
        "ensemble-shape",
        START,
        config(ENSEMBLE, r'(name: "text_input"\s+data_type: \w+\s+dims: )1', r"\1 3"),
        "has dims",
    ),
    (
        "ensemble-unused",
        START,
        config(ENSEMBLE, r"input {", 'input { name: "x" dims: 1 } input {'),
        "no step uses tensor x",
    ),
]


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_each_way_to_break_it_is_found(repository, kind, effect, change, says):
    change(repository)
    check_found(repository, kind, effect, says)


def test_a_step_that_takes_no_batches_is_allowed(repository):
    """As Triton does: it gives it one request at a time. postprocessing then answers as before."""
    config("postprocessing", r"max_batch_size: \d+\n", "")(repository)
    assert "batch-size" not in {one.kind for one in lint(repository)}
