"""Runs the sharded model and the reference side by side, layer by layer, and compares what they compute.

After a layer that differs, the sharded run continues from the reference's hidden states. So every wrong layer is named,
and no right layer is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.checkpoint.reader import Checkpoint
from toolkit.checkpoint.source import Source
from toolkit.checkpoint.structure import Difference
from toolkit.checkpoint.verify.prompts import Prompts
from toolkit.checkpoint.verify.reference import ReferenceModel
from toolkit.checkpoint.verify.sharded import ShardedModel

TOLERANCE = 1e-3
"""Largest difference, relative to the norm of a token's hidden state, or to the largest logit. Both runs have the same
weights and compute in float32: over 80 layers they differ by about 1e-5. Exchanged heads give 1e-1."""
TIE = 1e-5
"""Two logits closer than this fraction of the largest count as equal: both of their tokens are greedy ones."""


@dataclass
class Meaning:
    """The result. An error is relative, and the largest of all tokens."""

    prompts: Prompts
    layers: int = 0
    hidden_error: float = 0.0
    unbroken: bool = True
    """Whether the sharded run went from tokens to logits by itself. If not, the next two are of the output layer."""
    logits_error: float = 0.0
    greedy_differences: int = 0
    """The number of positions, in all prompts, with another greedy next token."""
    differences: list[Difference] = field(default_factory=list)


@torch.inference_mode()
def compare_meaning(
    source: Source, checkpoint: Checkpoint, prompts: Prompts, progress: Callable[[int, int], None]
) -> Meaning:
    """Compute every position of every prompt in both ways. `progress` is called with (layers done, layers in total).

    The headers must have passed `structure_differences`. Needs memory for one layer in float32.
    """
    tokens, lengths = torch.tensor([token for ids in prompts.ids for token in ids]), prompts.lengths
    sharded, reference = ShardedModel(checkpoint, max(lengths)), ReferenceModel(source, checkpoint.dtype)
    outcome = Meaning(prompts, layers=checkpoint.shape.num_hidden_layers)
    expected = reference.embed(tokens)
    hidden = _checked(sharded.embed(tokens), expected, "embedding", 0, outcome)
    for index in range(outcome.layers):
        expected = reference.layer(index, expected, lengths)
        actual = sharded.layer(index, hidden, lengths)
        hidden = _checked(actual, expected, f"layer {index}", sharded.stage(index), outcome)
        progress(index + 1, outcome.layers)
    _check_logits(sharded.logits(hidden), reference.logits(expected), outcome)
    return outcome


def _checked(actual: Tensor, expected: Tensor, name: str, stage: int, outcome: Meaning) -> Tensor:
    """The hidden states to continue with: `actual`, or `expected` if they differ."""
    error = float(((actual - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)).max())
    if error <= TOLERANCE:
        outcome.hidden_error = max(outcome.hidden_error, error)
        return actual
    outcome.unbroken = False
    what = f"hidden states differ by {error:.2g} of their norm, rounding explains at most {TOLERANCE:g}"
    outcome.differences.append(Difference(f"{name} (stage {stage})", what, {"stage": stage, "error": error}))
    return expected


def _check_logits(actual: Tensor, expected: Tensor, outcome: Meaning) -> None:
    largest = max(float(expected.abs().max()), 1e-30)
    outcome.logits_error = float((actual - expected).abs().max()) / largest
    if not outcome.logits_error <= TOLERANCE:
        what = f"logits differ by {outcome.logits_error:.2g} of the largest, rounding explains at most {TOLERANCE:g}"
        outcome.differences.append(Difference("output (last stage)", what, {"error": outcome.logits_error}))
    best = expected.max(1).values
    chosen = expected.gather(1, actual.argmax(1, keepdim=True))[:, 0]
    outcome.greedy_differences = int((best - chosen > TIE * largest).sum())
    if outcome.greedy_differences:
        what = f"another greedy token at {outcome.greedy_differences} of {len(best)} positions"
        details = {"positions": outcome.greedy_differences, "of": len(best)}
        outcome.differences.append(Difference("output (last stage)", what, details))
