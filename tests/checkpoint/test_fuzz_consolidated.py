"""A consolidated.*.pth with some bytes changed: tensors or a ToolkitError, in no time and without a warning."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.errors import ToolkitError
from toolkit.model.meta_weights import load

pytestmark = pytest.mark.thorough


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


VALID = saved({f"layers.{n}.attention.wq.weight": torch.ones(4, 4, dtype=torch.bfloat16) for n in range(2)})


@settings(
    max_examples=500,
    deadline=30_000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_valid_file_with_some_bytes_changed(tmp_path, data):
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=8))
    if data.draw(st.integers(0, 9)) == 0:
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "consolidated.00.pth"
    path.unlink(missing_ok=True)  # the one before may still be mapped
    path.write_bytes(content)
    with warnings.catch_warnings(action="error"):
        try:
            for tensor in load(path).values():
                tensor.clone()
        except ToolkitError as error:
            assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 1000


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(1 << 40, 64), torch.ones(4, 4).T[:3], torch.ones(4, 4).to_sparse()],
    ids=["a terabyte of one number", "columns as rows", "sparse"],
)
def test_tensors_that_are_no_block_of_the_file(tmp_path, tensor):
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(saved({"layers.0.attention.wq.weight": tensor}))
    with pytest.raises(ToolkitError, match="is not a plain tensor"):
        load(path)
