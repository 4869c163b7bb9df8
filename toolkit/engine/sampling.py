"""From logits to tokens, in the order of TensorRT-LLM 1.2.

embedding_bias, temperature, repetition, presence and frequency penalty (all three count prompt and output),
min_tokens, bad words; here log-probabilities are taken; then top-k, top-p of what it left, and the draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.engine.request import GenerationRequest, Word

FIRST_LOOK = 1024
"""How many of the most likely tokens top-p looks at before it has the whole vocabulary sorted."""


class Sampler:
    """Chooses the tokens of one sequence. Its state is its own: other sequences of a batch change nothing."""

    def __init__(self, request: GenerationRequest, index: int) -> None:
        self.request, self.prompt_length = request, len(request.input_ids)
        self.random = torch.Generator().manual_seed((request.seed + index) % 2**63)
        drawn = request.runtime_top_k > 1 or (request.runtime_top_k == 0 and request.runtime_top_p is not None)
        self.greedy = request.temperature == 0 or not drawn
        penalties = (request.repetition_penalty, request.presence_penalty, request.frequency_penalty)
        self.penalised = penalties != (1, 0, 0)
        self.bias = None if request.embedding_bias is None else torch.tensor(request.embedding_bias)
        self.ends_alone = [
            word[0] for word in (*request.stop_words_list, (request.end_id,)) if len(word) == 1 and word[0] >= 0
        ]
        adjusted = self.penalised or request.min_tokens or request.bad_words_list or self.bias is not None
        self.plain = self.greedy and not adjusted and not request.return_log_probs
        """Whether the argmax of the logits as they are is all that is asked for."""
        self._counts, self._counted = torch.zeros(0), 0

    def next(self, logits: Tensor, tokens: list[int]) -> tuple[int, float | None]:
        """The token after `tokens` (prompt and output), and its log-probability if asked for.

        logits: float32 [vocab_size].
        """
        logits = self.adjusted(logits, tokens)
        token = int(logits.argmax()) if self.greedy else self._draw(logits)
        return token, float(logits.log_softmax(0)[token]) if self.request.return_log_probs else None

    def ends(self, tokens: list[int], token: int) -> bool:
        """Whether `token` after `tokens` ends the text: it is end_id, or completes a stop word."""
        enough = len(tokens) + 1 - self.prompt_length >= self.request.min_tokens
        return token in self.ends_alone or (enough and token in _last_ids(self.request.stop_words_list, tokens))

    def adjusted(self, logits: Tensor, tokens: list[int]) -> Tensor:
        """Logits after everything that is done to them before top-k and top-p."""
        request = self.request
        logits = logits.clone() if self.bias is None else logits + self.bias
        logits /= request.temperature or 1.0
        if self.penalised:
            counts = self._occurrences(tokens, len(logits))
            penalty = torch.where(logits < 0, request.repetition_penalty, 1 / request.repetition_penalty)
            penalised = logits * penalty - request.presence_penalty - request.frequency_penalty * counts
            logits = torch.where(counts > 0, penalised, logits)
        if len(tokens) - self.prompt_length < request.min_tokens:
            logits[self.ends_alone] = -torch.inf
        logits[_last_ids(request.bad_words_list, tokens)] = -torch.inf
        return logits

    def _occurrences(self, tokens: list[int], size: int) -> Tensor:
        """How often each id is in `tokens`, which only grow: each is counted once."""
        new = torch.bincount(torch.tensor(tokens[self._counted :], dtype=torch.long), minlength=size)
        self._counts = self._counts + new if self._counted else new
        self._counted = len(tokens)
        return self._counts

    def _draw(self, logits: Tensor) -> int:
        """A token drawn by inverse transform, so that one random number decides it."""
        chances, top_k, top_p = logits.softmax(0), self.request.runtime_top_k, self.request.runtime_top_p or 1.0
        likely, ids = chances.topk(min(top_k or FIRST_LOOK, len(chances)))
        if not top_k and likely.sum() < top_p:
            likely, ids = chances.sort(descending=True)
        sums = likely.double().cumsum(0)
        # The fewest tokens that reach top_p of what top-k has left, or of everything.
        nucleus = int(torch.searchsorted(sums, sums[-1] * top_p if top_k else top_p)) + 1
        sums = sums[:nucleus]
        draw = torch.rand((), generator=self.random, dtype=torch.float64) * sums[-1]
        return int(ids[int(torch.searchsorted(sums, draw, right=True).clamp(max=len(sums) - 1))])


def _last_ids(words: tuple[Word, ...], tokens: list[int]) -> list[int]:
    """The last ids of those words that `tokens` end with all but the last of."""
    return [word[-1] for word in words if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]]
