"""An upper bound on the requests that a replica can serve with any batch limits: from step times, without a simulation.

The prompts of a full replica come either evenly, a part of one in each step, or whole, one in a step now and then. The
bound takes whichever is faster. Real steps are less regular, and stages also wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.steptimes.step import StepTimes, StepWork, decode, prefill

if TYPE_CHECKING:
    from toolkit.config.sections import Slo
    from toolkit.plan.predict import Prediction


@dataclass(frozen=True)
class Bounds:
    """The bounds of one replica under requests of the traffic's mean lengths."""

    times: StepTimes
    prompt: int
    output: int

    @classmethod
    def of(cls, prediction: Prediction) -> Bounds:
        return cls(prediction.times, prediction.prompt_tokens, prediction.output_tokens)

    def token_s(self, sequences: float) -> float:
        """Seconds from token to token, with `sequences` sequences spread evenly over the micro-batches."""
        stages, work = self.times.stages, self._step(max(1.0, sequences / self.times.stages))
        seconds = self._seconds(max(1.0, sequences / stages))
        through = sum(seconds) + sum(self.times.hops(work)) + self.times.finish_seconds(work)
        return max(through, stages * max(seconds))

    def rate(self, sequences: int, max_num_tokens: int) -> float:
        """The most requests/s, with `sequences` sequences in flight and `max_num_tokens` tokens per step."""
        by_sequences = sequences / (self.output * self.token_s(sequences))
        tokens = self.prompt + self.output - 1
        full = self._seconds(max_num_tokens * self.output / tokens)
        return min(by_sequences, max_num_tokens / (tokens * max(full)))

    def sequences(self, token_s: float, most: int) -> int:
        """How many sequences, up to `most`, get each token within `token_s` seconds; 0 where not even one does."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.token_s(middle) <= token_s else (low, middle - 1)
        return low

    def _seconds(self, sequences: float) -> list[float]:
        """Seconds of a step with `sequences` sequences on each stage."""
        even, starting = self.times.stage_seconds(self._step(sequences)), sequences / self.output
        if starting >= 1:
            return even
        without = decode(round(sequences - starting), self.prompt + self.output / 2)
        with_one = prefill(self.prompt)._replace(
            generations=without.generations, keys=without.keys, emitted=without.emitted + 1
        )
        times = zip(self.times.stage_seconds(without), self.times.stage_seconds(with_one), strict=True)
        now_and_then = [(1 - starting) * most + starting * few for most, few in times]
        return min(even, now_and_then, key=max)

    def _step(self, sequences: float) -> StepWork:
        """The mean step of `sequences` sequences. Each sequence is in `output` steps, in one of them with its
        prompt."""
        starting = sequences / self.output
        generating = sequences - starting
        return StepWork(
            context_tokens=round(starting * self.prompt),
            context_pairs=starting * self.prompt * (self.prompt + 1) / 2,
            contexts=1 if starting else 0,
            generations=round(generating),
            keys=round(generating * (self.prompt + self.output / 2)),
            emitted=round(sequences),
        )


def token_limit_s(slo: Slo, output: int) -> float | None:
    """The seconds that the SLO allows per token: the least limit of TPOT, or of a whole answer per token; None
    without."""
    limits = [limit for _, limit in slo.percentiles("tpot_ms")]
    limits += [limit / output for _, limit in slo.percentiles("e2e_ms")]
    return min(limits) / 1e3 if limits else None
