"""From logits to tokens, as TensorRT-LLM 1.2 does it.

In this order: embedding_bias, temperature, repetition, presence and frequency penalty (all three count
prompt and output), min_tokens, bad words; then log-probabilities are taken, of the whole vocabulary; then
top-k, top-p within it, and the draw. Choosing at random has to be asked for with runtime_top_k > 1 or with
runtime_top_p: without them, or with temperature 0, the most likely token is taken whatever the temperature.
The seed is 0 unless given, so that a request repeated gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import InputRefused

FIRST_LOOK = 1024
"""Most likely tokens to look at for top-p before the whole vocabulary is sorted."""


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen, and when to end. Defaults are those of TensorRT-LLM."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float | None = None
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    end_id: int = -1  # -1: none
    stop_words: tuple[tuple[int, ...], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    embedding_bias: Tensor | None = None  # float32 [vocab_size]
    log_probs: bool = False

    def check(self, vocab_size: int) -> None:
        """Raises InputRefused, naming the first parameter that cannot be."""
        words = [token for word in self.stop_words + self.bad_words for token in (word or (-1,))]
        bias = self.embedding_bias
        for name, value, fits, wanted in (
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("runtime_top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("runtime_top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0"),
            ("min_tokens", self.min_tokens, self.min_tokens >= 0, "0 or more"),
            ("end_id", self.end_id, -1 <= self.end_id < vocab_size, f"-1 or a token id below {vocab_size}"),
            ("stop_words_list or bad_words_list", words, all(0 <= token < vocab_size for token in words), "token ids"),
            ("embedding_bias", bias and bias.shape, bias is None or bias.shape == (vocab_size,), f"[{vocab_size}]"),
        ):
            if not fits:
                raise InputRefused(f"{name}: expected {wanted}, got {value}")


class Sampler:
    """Chooses the tokens of one sequence. Its state is its own, so other sequences of a batch change nothing."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], index: int) -> None:
        self.sampling, self.prompt_length = sampling, len(prompt)
        self.random = torch.Generator().manual_seed((sampling.seed + index) % 2**63)
        self.greedy = (
            sampling.temperature == 0 or (sampling.top_k <= 1 and sampling.top_p is None) or sampling.top_k == 1
        )
        self._penalised = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (
            1,
            0,
            0,
        )
        self._counts: Tensor | None = None
        ends = {word[0] for word in sampling.stop_words if len(word) == 1} | {sampling.end_id}
        self._ends = sorted(ends - {-1})

    @property
    def plain(self) -> bool:
        """Whether the argmax of the logits as they are is all that is asked for."""
        s = self.sampling
        changed = self._penalised or s.min_tokens or s.bad_words or s.embedding_bias is not None
        return self.greedy and not changed and not s.log_probs

    def next(self, logits: Tensor, tokens: list[int]) -> tuple[int, float | None]:
        """The token after `tokens` (prompt and output) and, if asked for, its log-probability.

        logits: float32 [vocab_size].
        """
        logits = self._adjusted(logits, tokens)
        token = int(logits.argmax()) if self.greedy else self._draw(logits)
        return token, float(logits.log_softmax(0)[token]) if self.sampling.log_probs else None

    def ends(self, tokens: list[int], token: int) -> bool:
        """Whether `token` after `tokens` ends the text: it is end_id, or completes a stop word."""
        if token in self._ends:
            return True
        enough = len(tokens) + 1 - self.prompt_length >= self.sampling.min_tokens
        return enough and token in self._completed(self.sampling.stop_words, tokens)

    @staticmethod
    def _completed(words: tuple[tuple[int, ...], ...], tokens: list[int]) -> list[int]:
        """The last tokens of those words of which `tokens` end with all the others."""
        return [word[-1] for word in words if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]]

    def _adjusted(self, logits: Tensor, tokens: list[int]) -> Tensor:
        s = self.sampling
        logits = logits.clone() if s.embedding_bias is None else logits + s.embedding_bias
        logits /= s.temperature or 1.0
        if self._penalised:
            counts = self._occurrences(tokens, len(logits))
            seen = counts > 0
            scaled = torch.where(logits < 0, logits * s.repetition_penalty, logits / s.repetition_penalty)
            logits = torch.where(seen, scaled - s.presence_penalty, logits) - s.frequency_penalty * counts
        if len(tokens) - self.prompt_length < s.min_tokens:
            logits[self._ends] = -torch.inf
        logits[self._completed(s.bad_words, tokens)] = -torch.inf
        return logits

    def _occurrences(self, tokens: list[int], size: int) -> Tensor:
        """How often each id is in `tokens`. They only grow, so each is counted once."""
        new = tokens
        if self._counts is None:
            self._counts = torch.zeros(size)
        else:
            new = tokens[self._counted :]
        self._counts += torch.bincount(torch.tensor(new, dtype=torch.long), minlength=size)
        self._counted = len(tokens)
        return self._counts

    def _draw(self, logits: Tensor) -> int:
        s, size = self.sampling, len(logits)
        chances = logits.softmax(0)
        top_p = 1.0 if s.top_p is None else s.top_p
        look = min(s.top_k or FIRST_LOOK, size)
        likely, ids = chances.topk(look)
        if not s.top_k and likely.sum() < top_p:
            likely, ids = chances.sort(descending=True)
        sums = likely.double().cumsum(0)
        limit = sums[-1] * top_p  # top-p of what top-k has left
        kept = int(torch.searchsorted(sums, limit)) + 1
        mass = sums[min(kept, len(sums)) - 1]
        draw = torch.rand((), generator=self.random, dtype=torch.float64) * mass
        return int(ids[min(int(torch.searchsorted(sums, draw, right=True)), len(ids) - 1)])
