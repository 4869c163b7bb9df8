"""The weights in Meta's original form: `consolidated.NN.pth`, one for each model parallel rank.

They are pickles, but read without running any code in them, and mapped instead of loaded: a tensor's bytes
come from the disk when they are used.
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
    """The files by rank. Raises ToolkitError when there is none or one is missing between others."""
    found = sorted(Path(directory).glob(PATTERN))
    if not found:
        hint = "Download the consolidated.*.pth of the model into the directory of its params.json."
        raise ToolkitError(f"holds no {PATTERN}", where=directory, hint=hint)
    for rank, path in enumerate(found):
        wanted = f"consolidated.{rank:02d}.pth"
        if path.name != wanted:
            what = f"holds {path.name} but no {wanted}"
            raise ToolkitError(
                what, where=directory, hint="Download the missing file, or remove what is not the model's."
            )
    return found


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by Meta's names. Raises ToolkitError for what is damaged or holds more than tensors."""
    import pickle
    import warnings

    import torch

    open_file(path).close()
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is odd in a pickle that then fails anyway
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise ToolkitError(
            "is damaged, or a pickle that holds code, which is never run",
            where=path,
            hint="Download it again from Meta, or use the safetensors of the same model.",
        ) from None
    except Exception as error:  # there is nothing that a damaged pickle cannot raise
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ToolkitError(f"is not a whole PyTorch file: {why}", where=path, hint="Download it again.") from None
    if not isinstance(tensors, dict) or not tensors:
        raise ToolkitError(f"holds {type(tensors).__name__}, expected tensors by name", where=path)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise ToolkitError(f"{shown(name)}: is not a plain tensor", where=path, hint="Download it again.")
    return tensors


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose every element has its own place in the file, which bounds its size."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_contiguous()


def vocabulary(directory: Path) -> int:
    """Tokens of the model, which Llama 2's params.json leaves open: each rank holds an equal share of the output."""
    files = shards(directory)
    output = load(files[0]).get(OUTPUT)
    if output is None or output.dim() != 2:
        raise ToolkitError(f"{OUTPUT}: is missing or no matrix", where=files[0], hint="Download it again.")
    return len(output) * len(files)
