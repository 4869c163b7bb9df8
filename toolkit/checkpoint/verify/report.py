"""Shows a Verification as text and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.verify import Verification
from toolkit.errors import LONGEST_LINE, clipped

if TYPE_CHECKING:
    from toolkit.checkpoint.verify.meaning import Meaning

SHOWN = 20
"""How many differences are printed; JSON has all."""


def lines(result: Verification) -> list[str]:
    """For a person: what was compared, what differs, and the verdict."""
    text = [clipped(str(difference), LONGEST_LINE) for difference in result.differences[:SHOWN]]
    if len(result.differences) > SHOWN:
        text.append(f"... and {len(result.differences) - SHOWN} more; --json shows all")
    if result.bytes:
        different = len(result.bytes.differences)
        text.append(
            f"bytes: {result.bytes.elements:,} elements of {result.bytes.tensors} tensors in {result.ranks} rank "
            f"files; {result.bytes.different_elements:,} elements in {different} tensors differ"
        )
    if result.meaning:
        text.append(_meaning(result.meaning))
    compared = " and ".join(name for name, part in (("bytes", result.bytes), ("meaning", result.meaning)) if part)
    verdict = f"{compared} as in" if result.same else "DIFFERS from"
    return [*text, f"{result.checkpoint}: {verdict} {result.source}"]


def _meaning(meaning: Meaning) -> str:
    prompts = meaning.prompts
    positions = f"{sum(prompts.lengths)} tokens of {len(prompts.ids)} prompts ({prompts.origin})"
    outcome = f"{len(meaning.differences)} differences"
    if not meaning.differences:
        outcome = f"the same greedy tokens, logits within {meaning.logits_error:.1e} of the largest"
    return f"meaning: {meaning.layers} layers on {positions}; {outcome}"


def as_dict(result: Verification) -> dict[str, Any]:
    """For a machine."""
    data: dict[str, Any] = {
        "checkpoint": str(result.checkpoint),
        "source": str(result.source),
        "same": result.same,
        "ranks": result.ranks,
        "bytes": None,
        "meaning": None,
        "differences": [difference.as_dict() for difference in result.differences],
    }
    if result.bytes:
        compared = result.bytes
        data["bytes"] = {
            "tensors": compared.tensors,
            "elements": compared.elements,
            "different_tensors": len(compared.differences),
            "different_elements": compared.different_elements,
        }
    if result.meaning:
        meaning = result.meaning
        data["meaning"] = {
            "prompts": len(meaning.prompts.ids),
            "prompts_from": meaning.prompts.origin,
            "tokens": sum(meaning.prompts.lengths),
            "layers": meaning.layers,
            "hidden_error": meaning.hidden_error,
            "logits_error": meaning.logits_error if meaning.unbroken else None,
            "greedy_differences": meaning.greedy_differences if meaning.unbroken else None,
        }
    finite: dict[str, Any] = _finite(data)
    return finite


def _finite(value: Any) -> Any:
    """The value with NaN and infinity as text: JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
