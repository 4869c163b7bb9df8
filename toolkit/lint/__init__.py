"""Finds what is wrong with a Triton model repository before Triton does: in a second, without a GPU.

Ours, or one that others have made from NVIDIA's templates. `Finding` says what; `lint` finds.
"""

from toolkit.lint.finding import LEVELS, Finding
from toolkit.lint.lint import lint

__all__ = ["LEVELS", "Finding", "lint"]
