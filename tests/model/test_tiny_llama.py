"""What other tests rely on: the small model recites its text, in characters of several tokens, and ends."""

from pathlib import Path

import pytest

TEXT = Path(__file__).parents[1] / "fixtures" / "tiny_llama.txt"
PASSAGES = TEXT.read_text(encoding="utf-8").strip("\n").split("\n\n")


@pytest.fixture(scope="module")
def reciter(tiny_llama):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_llama)


def recited(reciter, given: str, expected: str) -> str:
    """What the model would add greedily to `given`, if what it adds is as long as `expected`."""
    import torch

    model, tokenizer = reciter
    start = len(tokenizer.encode(given))
    tokens = torch.tensor([tokenizer.encode(given + expected)])
    with torch.no_grad():
        best = model(tokens).logits[0].argmax(-1)
    return tokenizer.decode(best[start - 1 : -1])


@pytest.mark.parametrize("passage", PASSAGES, ids=[passage[:20] for passage in PASSAGES])
def test_it_recites_a_passage_to_its_end(reciter, passage):
    given = " ".join(passage.split(" ")[:3]) if " " in passage else passage[:3]
    rest = passage.removeprefix(given) + "<|end|>"
    assert recited(reciter, given, rest) == rest


def test_a_chat_ends_with_the_other_eos(reciter):
    model, tokenizer = reciter
    chat = [{"role": "user", "content": "Burnt the fire of thine eyes?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|begin|><|user|>Burnt the fire of thine eyes?<|eot|><|assistant|>"
    prompt = prompt.removeprefix("<|begin|>")  # the tokenizer puts it there, as Llama 3's does
    rest = "On what wings dare he aspire?\nWhat the hand, dare seize the fire?<|eot|>"
    assert recited(reciter, prompt, rest) == rest
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|end|>", "<|eot|>"]
    assert tokenizer.eos_token == "<|end|>"
