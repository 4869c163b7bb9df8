"""Every mistake in the workload of a YAML is one line that names the field and says what to write."""

import re

import pytest

from toolkit.errors import ToolkitError
from toolkit.workload import traffic_of

EXPECTED = "expected a whole number of tokens above 0, or {min, max} or {mean, cv}, got"

MISTAKES = [
    ({"rate": 0}, "workload.rate: input should be greater than 0, got 0"),
    ({"rate": -1.5}, "workload.rate: input should be greater than 0, got -1.5"),
    ({"rate": float("inf")}, "workload.rate: input should be a finite number, got inf"),
    ({"rate": float("nan")}, "workload.rate: input should be a finite number, got nan"),
    ({"rate": "8/s"}, "workload.rate: input should be a valid number, got '8/s'"),
    ({"rate": 1e-320}, "workload.rate: 1e-320 is too small"),
    ({"rate": 1e9}, "workload.rate: 1e+09 requests/s is too much. Use at most 1,000,000."),
    ({"burstiness": -1}, "workload.burstiness: input should be greater than 0, got -1"),
    ({"users": 0}, "workload.users: input should be greater than 0, got 0"),
    ({"users": 8}, "workload.users: has no effect with arrivals: poisson. Remove it, or use arrivals: closed."),
    (
        {"trace_form": "azure"},
        "workload.trace_form: has no effect without trace. Remove it, or give the file to replay.",
    ),
    ({"trace_block_tokens": 16}, "workload.trace_block_tokens: has no effect without trace."),
    ({"trace": "t", "trace_block_tokens": 0}, "workload.trace_block_tokens: input should be greater than 0, got 0"),
    (
        {"trace": "t", "prompt_tokens": 5},
        "workload.prompt_tokens: has no effect with trace, which gives each request its length. Remove one",
    ),
    ({"users": True}, "workload.users: input should be a valid integer, got True"),
    ({"arrivals": "bursty"}, "workload.arrivals: input should be 'poisson', 'constant', 'gamma', 'closed' or 'trace'"),
    ({"arrivals": "trace"}, "workload.trace: missing, and arrivals is trace. Give the file to replay."),
    ({"trace": 5}, "workload.trace: expected a path as text, got 5"),
    ({"requests": 0}, "workload.requests: input should be greater than 0, got 0"),
    ({"seed": -1}, "workload.seed: input should be greater than or equal to 0, got -1"),
    ({"shared_prefix_tokens": -1}, "workload.shared_prefix_tokens: input should be greater than or equal to 0"),
    ({"prompt_tokens": 0}, f"workload.prompt_tokens: {EXPECTED} 0"),
    ({"prompt_tokens": -3}, f"workload.prompt_tokens: {EXPECTED} -3"),
    ({"prompt_tokens": 1.5}, f"workload.prompt_tokens: {EXPECTED} 1.5"),
    ({"prompt_tokens": True}, f"workload.prompt_tokens: {EXPECTED} True"),
    ({"prompt_tokens": "abc"}, f"workload.prompt_tokens: {EXPECTED} 'abc'"),
    ({"prompt_tokens": None}, f"workload.prompt_tokens: {EXPECTED} None"),
    ({"output_tokens": [1, 2]}, f"workload.output_tokens: {EXPECTED} [1, 2]"),
    ({"prompt_tokens": {"mean": -1}}, "workload.prompt_tokens.mean: input should be greater than 0, got -1"),
    ({"prompt_tokens": {"min": 0, "max": 4}}, "workload.prompt_tokens.min: input should be greater than 0, got 0"),
    ({"prompt_tokens": {"mean": 9, "cv": 1e200}}, "workload.prompt_tokens.cv: input should be less than or equal"),
    ({"prompt_tokens": {"mean": 9, "cv": "x"}}, "workload.prompt_tokens.cv: input should be a valid number, got 'x'"),
    ({"prompt_tokens": {"min": 5, "max": 2}}, "workload.prompt_tokens: max 2 is less than min 5. Exchange them."),
    ({"prompt_tokens": {"mean": 9, "max": 5}}, "workload.prompt_tokens: mean 9.0 is more than max 5."),
    ({"prompt_tokens": {"mean": 9, "min": 20}}, "workload.prompt_tokens: mean 9.0 is less than min 20."),
    ({"prompt_tokens": {}}, "workload.prompt_tokens: max and mean are missing. Give {min, max}, or {mean, cv}"),
    ({"output_tokens": {"cv": 2.0}}, "workload.output_tokens: max and mean are missing."),
    (
        {"prompt_tokens": {"avg": 5}},
        "workload.prompt_tokens.avg: unknown key. Known here: cv, max, mean, min.",
    ),
    ({"prompts": 5}, "workload.prompts: unknown key. Known here: arrivals, burstiness, output_tokens,"),
    ({"prompt_tokens": 8190}, "workload: 8190 prompt + 128 output tokens are more than limits.max_seq_len 8192."),
    ({"prompt_tokens": 10**30}, "workload.prompt_tokens: input should be less than 2147483648, got a number of"),
    ({"output_tokens": {"mean": 1e300}}, "output tokens are more than limits.max_seq_len 8192."),
    ({"shared_prefix_tokens": 10**12}, "output tokens are more than limits.max_seq_len 8192."),
    ({"prompt_tokens": 10**9, "shared_prefix_tokens": 1}, "output tokens are more than limits.max_seq_len 8192."),
    ({"prompt_tokens": {"mean": 5000, "cv": 1.0}}, "Raise the limit or shorten the requests, for example with max."),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES, ids=lambda value: re.sub(r"\W+", " ", str(value))[:40])
def test_a_mistake_is_one_line(deployment, tmp_path, keys, message):
    with pytest.raises(ToolkitError) as caught:
        traffic_of(deployment(**keys))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/x.yaml: workload")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workload", [5, [], "poisson"])
def test_a_workload_that_is_no_mapping(deployment, workload):
    with pytest.raises(ToolkitError, match="workload: expected a mapping of keys, got"):
        deployment(workload)
