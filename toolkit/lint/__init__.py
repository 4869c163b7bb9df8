"""Finds mistakes in a Triton model repository before Triton does: in a second, without a GPU.

The repository is ours, or one that others made from NVIDIA's templates. `lint` returns a `Finding` for each mistake.
"""

from toolkit.lint.finding import LEVELS, Finding
from toolkit.lint.lint import lint

__all__ = ["LEVELS", "Finding", "lint"]
