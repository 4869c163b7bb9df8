"""Servers whose every step takes a known time, and traffic by hand: what queueing theory knows the answers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.inflight import SchedulerConfig
from toolkit.steptimes.step import StepWork
from toolkit.workload import Planned, Traffic


@dataclass
class Steady:
    """StepTimes: each stage takes its `seconds`, whatever the step; keeps the work of each step in `works`.

    With `cores` it is a rehearsal, whose ranks share them.
    """

    seconds: Sequence[float]
    hop: float = 0.0
    finish: float = 0.0
    cores: int | None = None
    ranks_per_stage: int = 1
    works: list[StepWork] = field(default_factory=list)

    @property
    def stages(self) -> int:
        return len(self.seconds)

    @property
    def one_thread(self) -> bool:
        return self.cores is not None

    def slowdown(self, in_flight: int) -> float:
        return max(1.0, in_flight * self.ranks_per_stage / self.cores) if self.cores else 1.0

    def stage_seconds(self, work: StepWork) -> list[float]:
        self.works.append(work)
        return list(self.seconds)

    def hops(self, work: StepWork) -> list[float]:
        return [self.hop] * (self.stages - 1)

    def finish_seconds(self, work: StepWork) -> float:
        return self.finish


def config(**changed: Any) -> SchedulerConfig:
    """One sequence a step, one step in flight, and more room and queue than any test fills."""
    values: dict[str, Any] = {
        "max_batch_size": 1,
        "max_num_tokens": 64,
        "micro_batches": 1,
        "num_blocks": 4096,
        "tokens_per_block": 8,
        "policy": "guaranteed_no_evict",
        "chunked_context": True,
        "reuse": False,
        "max_queue_size": 10**6,
        "max_seq_len": 4096,
    }
    return SchedulerConfig(**{**values, **changed})


def prompt(number: int, length: int) -> range:
    """A prompt that shares nothing with those of other numbers."""
    return range((number + 1) << 32, ((number + 1) << 32) + length)


def due_at(dues: Sequence[float], prompt_tokens: int = 1, output_tokens: int = 1, rate: float = 1.0) -> Traffic:
    """An open loop of equal requests at these times."""
    requests = (Planned(due, prompt(n, prompt_tokens), output_tokens) for n, due in enumerate(dues))
    return Traffic(tuple(requests), rate, None, False)
