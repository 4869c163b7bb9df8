"""Weights in Meta's original form: `consolidated.NN.pth`, one file per model parallel rank.

The files are pickles, but no code in them runs. They are mapped into memory, so a tensor's bytes come from the disk
when they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError, shown
from toolkit.files.atomic import open_file

if TYPE_CHECKING:
    import torch

PATTERN = "consolidated.*.pth"
OUTPUT = "output.weight"


def shards(directory: Path) -> list[Path]:
    """The files in order of rank. Raises ToolkitError if there is none, or one is missing."""
    files = sorted(Path(directory).glob(PATTERN))
    if not files:
        hint = "Download the consolidated.*.pth of the model into the directory of its params.json."
        raise ToolkitError(f"holds no {PATTERN}", where=directory, hint=hint)
    for rank, path in enumerate(files):
        expected = f"consolidated.{rank:02d}.pth"
        if path.name != expected:
            what = f"holds {path.name} but no {expected}"
            hint = "Download the missing file, or remove files of other models."
            raise ToolkitError(what, where=directory, hint=hint)
    return files


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by Meta's names. Raises ToolkitError if it is damaged or holds more than tensors."""
    import pickle
    import warnings

    import torch

    open_file(path).close()
    try:
        with warnings.catch_warnings(action="ignore"):  # an odd pickle warns first, then fails
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise ToolkitError(
            "is damaged, or a pickle that holds code, which never runs",
            where=path,
            hint="Download it again from Meta, or use the safetensors of the same model.",
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ToolkitError(f"is not a whole PyTorch file: {why}", where=path, hint="Download it again.") from None
    if not isinstance(tensors, dict) or not tensors:
        raise ToolkitError(f"holds {type(tensors).__name__}, expected tensors by name", where=path)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise ToolkitError(f"{shown(name)}: is not a plain tensor", where=path, hint="Download it again.")
    return tensors


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose elements each have their own place in the file, which bounds its size."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_contiguous()


def vocabulary(directory: Path) -> int:
    """Vocabulary size, which Llama 2's params.json lacks: each rank holds an equal share of the output matrix."""
    files = shards(directory)
    output = load(files[0]).get(OUTPUT)
    if output is None or output.dim() != 2:
        raise ToolkitError(f"{OUTPUT}: is missing, or not a matrix", where=files[0], hint="Download it again.")
    return len(output) * len(files)
