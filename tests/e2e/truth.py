"""What the model must say: transformers, unsharded, in float32 from the same float16 weights, and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

ENDS = (1, 2)
"""eos_token_id of tests/fixtures/tiny-llama/generation_config.json."""

Processor = Callable[[Tensor, Tensor], Tensor]
"""As those of transformers: (ids [1, n], logits [1, vocabulary]) to logits."""


class Truth:
    def __init__(self, model: Path) -> None:
        torch.set_num_threads(1)  # for a model of this size, threads cost more than they gain
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def ids(self, text: str) -> list[int]:
        """With the BOS that the tokenizer puts before a text."""
        return self.tokenizer.encode(text).ids

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    @torch.inference_mode()
    def greedy(
        self, prompt: list[int], max_tokens: int, ends: tuple[int, ...] = ENDS, process: Processor | None = None
    ) -> list[int]:
        """The most likely tokens after the prompt, the one that ends them included."""
        output: list[int] = []
        step, cache = torch.tensor([prompt]), None
        while len(output) < max_tokens and not (output and output[-1] in ends):
            result = self._model(step, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            logits = result.logits[:, -1]
            if process:
                logits = process(torch.tensor([prompt + output]), logits.clone())
            output.append(int(logits.argmax()))
            step = torch.tensor([output[-1:]])
        return output

    @torch.inference_mode()
    def next_probabilities(self, prompt: list[int]) -> Tensor:
        """[vocabulary], of the token after the prompt."""
        return self._model(torch.tensor([prompt])).logits[0, -1].softmax(-1)

    @torch.inference_mode()
    def log_probs(self, prompt: list[int], output: list[int]) -> list[float]:
        """Of each token of the output, given all before it."""
        logits = self._model(torch.tensor([prompt + output])).logits[0]
        chosen = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return chosen[torch.arange(len(output)), output].tolist()
