"""KServe's binary tensors over HTTP, where NVIDIA's clients put them: behind the JSON, whose length is in the header
Inference-Header-Content-Length. With serving.decoupled: false, on eight ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as http
import yaml
from tritonclient.utils import np_to_triton_dtype

from .group import Group, succeed, write_yaml
from .marks import no_group
from .truth import Truth

pytestmark = [pytest.mark.slow, no_group]

PROMPT, TOKENS = "A tiny baker", 12
BINARY = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
OUTPUT_BINARY = pytest.mark.parametrize("output_binary", [True, False], ids=["binary out", "json out"])


@pytest.fixture(scope="module")
def unary(served: None, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Group]:
    """Tp 2, pp 4, and one response to a request."""
    file = write_yaml(tmp_path_factory.mktemp("unary"), tiny_llama, tp=2, pp=4)
    content = yaml.safe_load(file.read_text())
    content["serving"] |= {"decoupled": False, "startup_timeout_s": 400}
    file.write_text(yaml.safe_dump(content))
    for name in ("build", "repo", "serve --detach"):
        succeed(name, file)
    try:
        yield Group(file)
    finally:
        succeed("stop", file)


def infer(group: Group, model: str, arrays: dict[str, np.ndarray], output: str, binary: bool, output_binary: bool):
    """The response to arrays by name, sent as binary data or as JSON."""
    tensors = [
        http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)) for name, array in arrays.items()
    ]
    for tensor, array in zip(tensors, arrays.values(), strict=True):
        tensor.set_data_from_numpy(array, binary_data=binary)
    outputs = [http.InferRequestedOutput(output, binary_data=output_binary)]
    _, json_bytes = http.InferenceServerClient.generate_request_body(tensors, outputs=outputs)
    assert (json_bytes is not None) == binary, "with binary data, the header says how long the JSON is"
    with http.InferenceServerClient(group.http) as client:
        result = client.infer(model, tensors, outputs=outputs)
    assert ("binary_data_size" in result.get_output(output).get("parameters", {})) == output_binary
    return result.as_numpy(output)


@BINARY
@OUTPUT_BINARY
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_text(unary: Group, truth: Truth, model: str, binary: bool, output_binary: bool) -> None:
    arrays = {
        "text_input": np.array([[PROMPT]], object),
        "max_tokens": np.array([[TOKENS]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        "return_log_probs": np.array([[False]]),
        "seed": np.array([[7]], np.uint64),
    }
    text = infer(unary, model, arrays, "text_output", binary, output_binary)[0]
    expected = truth.text(truth.greedy(truth.ids(PROMPT), TOKENS))
    assert (text.decode() if isinstance(text, bytes) else text) == expected


@BINARY
@OUTPUT_BINARY
def test_token_ids(unary: Group, truth: Truth, binary: bool, output_binary: bool) -> None:
    ids = truth.ids(PROMPT)
    arrays = {
        "input_ids": np.array([ids], np.int32),
        "input_lengths": np.array([[len(ids)]], np.int32),
        "request_output_len": np.array([[TOKENS]], np.int32),
        "exclude_input_in_output": np.array([[True]]),
    }
    output = infer(unary, "tensorrt_llm", arrays, "output_ids", binary, output_binary)
    assert output.dtype == np.int32 and output.reshape(-1).tolist() == truth.greedy(ids, TOKENS)
