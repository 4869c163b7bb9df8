"""From logits to tokens, in the order of TensorRT-LLM 1.2.

embedding_bias, temperature, repetition, presence and frequency penalty (all three count prompt and output),
min_tokens, bad words; here log-probabilities are taken; then top-k, top-p of what it left, and the draw.
docs/reference/sampling.md says what each does at its edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.engine.request import GenerationRequest, Word

FIRST_LOOK = 1024
"""How many of the most likely tokens top-p tries before it sorts the whole vocabulary."""
MOST_TOP_K = 1024
"""The largest top_k of TensorRT-LLM; a larger one counts as this (TOP_K_MAX)."""
GREEDY_BELOW = 1e-6
"""Below this temperature decoding is greedy. TensorRT-LLM adds this much to every temperature."""


class Sampler:
    """Chooses the tokens of one sequence. Other sequences of the batch do not change its choice."""

    def __init__(self, request: GenerationRequest, seed: int) -> None:
        self.request, self.prompt_length = request, len(request.input_ids)
        self.random = torch.Generator().manual_seed(seed % 2**63)
        drawn = request.runtime_top_k > 1 or (request.runtime_top_k == 0 and request.runtime_top_p is not None)
        cold = request.temperature < GREEDY_BELOW
        self.greedy, self.temperature = cold or not drawn, 1.0 if cold else request.temperature
        self.top_k, self.top_p = min(request.runtime_top_k, MOST_TOP_K), request.runtime_top_p or 1.0
        penalties = (request.repetition_penalty, request.presence_penalty, request.frequency_penalty)
        self.penalised = penalties != (1, 0, 0)
        self.bias = None if request.embedding_bias is None else torch.tensor(request.embedding_bias)
        self.ends_alone = [
            word[0] for word in (*request.stop_words_list, (request.end_id,)) if len(word) == 1 and word[0] >= 0
        ]
        adjusted = self.penalised or request.min_tokens or request.bad_words_list or self.bias is not None
        self.plain = self.greedy and not adjusted and not request.return_log_probs
        """Whether the argmax of the unchanged logits is the answer."""
        self._counts, self._counted = torch.zeros(0), 0

    def next(self, logits: Tensor, tokens: list[int]) -> tuple[int, float | None]:
        """The token after `tokens` (prompt and output), and its log-probability if asked for.

        logits: float32 [vocab_size].
        """
        logits = self.adjusted(logits, tokens)
        token = int(logits.argmax()) if self.greedy else self._draw(logits)
        if not self.top_k:
            self._decay_top_p(token)
        return token, float(logits.log_softmax(0)[token]) if self.request.return_log_probs else None

    def ends(self, tokens: list[int], token: int) -> bool:
        """Whether `token` after `tokens` ends the text: it is end_id, or completes a stop word."""
        enough = len(tokens) + 1 - self.prompt_length >= self.request.min_tokens
        return token in self.ends_alone or (enough and token in _last_ids(self.request.stop_words_list, tokens))

    def adjusted(self, logits: Tensor, tokens: list[int]) -> Tensor:
        """Logits after all steps before top-k and top-p. In float64, so that no float32 input overflows."""
        request, size = self.request, len(logits)
        logits = logits.to(torch.float64, copy=True)
        if self.bias is not None:
            logits += self.bias
        logits /= self.temperature
        if self.penalised:
            counts = self._occurrences(tokens, size)
            ids = counts.nonzero()[:, 0]
            seen = logits[ids]
            seen = torch.where(seen < 0, seen * request.repetition_penalty, seen / request.repetition_penalty)
            logits[ids] = seen - request.presence_penalty - request.frequency_penalty * counts[ids].double()
        if len(tokens) - self.prompt_length < request.min_tokens:
            logits[_known(self.ends_alone, size)] = -torch.inf
        logits[_known(_last_ids(request.bad_words_list, tokens), size)] = -torch.inf
        return logits

    def _occurrences(self, tokens: list[int], size: int) -> Tensor:
        """How often each id occurs in `tokens`. They only grow, so each token is counted once."""
        known = _known(tokens[self._counted :], size)
        new = torch.bincount(torch.tensor(known, dtype=torch.long), minlength=size)
        self._counts = self._counts + new if self._counted else new
        self._counted = len(tokens)
        return self._counts

    def _draw(self, logits: Tensor) -> int:
        """Draw a token by inverse transform: one random number decides it."""
        chances, top_k, top_p = logits.softmax(0), self.top_k, self.top_p
        likely, ids = chances.topk(min(top_k or FIRST_LOOK, len(chances)))
        if not top_k and likely.sum() < top_p:
            likely, ids = chances.sort(descending=True)
        sums = likely.cumsum(0)
        # The fewest tokens that reach top_p of what top-k has left, or of the whole vocabulary.
        nucleus = int(torch.searchsorted(sums, sums[-1] * top_p if top_k else top_p)) + 1
        sums = sums[:nucleus]
        draw = torch.rand((), generator=self.random, dtype=torch.float64) * sums[-1]
        return int(ids[int(torch.searchsorted(sums, draw, right=True).clamp(max=len(sums) - 1))])

    def _decay_top_p(self, token: int) -> None:
        """Shrink top-p after a token, down to its minimum. The reset token sets it back."""
        request = self.request
        if token == request.runtime_top_p_reset_ids:
            self.top_p = request.runtime_top_p or 1.0
        else:
            self.top_p = max(self.top_p * request.runtime_top_p_decay, request.runtime_top_p_min)


def _last_ids(words: tuple[Word, ...], tokens: list[int]) -> list[int]:
    """The last id of each word whose other ids are the end of `tokens`."""
    return [word[-1] for word in words if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]]


def _known(ids: list[int], size: int) -> list[int]:
    """The ids that are in a vocabulary of `size`."""
    return [id for id in ids if 0 <= id < size]
