"""Triton's images with the backend, and the TensorRT-LLM in each.

Source: triton-inference-server/server docs/introduction/compatibility.md@e1db8a6 (2026-08-19), whose last row
with the backend is 26.07. Python is 3.12.3 in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.releases.tables import names, rows

_NAME = "nvcr.io/nvidia/tritonserver:{}-trtllm-python-py3"

# Tags, newest first          TensorRT-LLM  TensorRT    CUDA        driver
_IMAGES = """
    26.07, 26.06, 26.05, 26.04  1.2.1       10.14.1.48  13.1.0.036  590.44.01
    26.03                       1.2.0       10.14.1.48  13.1.0.036  590.44.01
    26.02, 26.01, 25.12         1.1.0       10.13.3.9   13.0.2.006  580.95.05
    25.11                       1.0.3.2510  10.13.3.9   13.0.2.006  580.95.05
    25.10, 25.09                1.0.0       10.11.0.33  12.9.1.010  575.57.08
    25.07, 25.06                0.20.0      10.10.0.31  12.9.0.036  575.51.03
"""


@dataclass(frozen=True)
class Image:
    """An image: its full name and the versions in it. `driver` is the GPU driver that it was made with."""

    tag: str
    version: str
    tensorrt: str
    cuda: str
    driver: str
    python: str = "3.12.3"


def images(release: str) -> Iterator[Image]:
    """The images of a release, newest first."""
    for tags, version, *parts in rows(_IMAGES, columns=5):
        if version.startswith(f"{release}."):
            yield from (Image(_NAME.format(tag), version, *parts) for tag in names(tags))
