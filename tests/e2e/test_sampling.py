"""What ends a text and what changes its tokens, against transformers' own logits processors."""

from collections import Counter

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from .group import text_of
from .marks import both_models, one_rank
from .tensors import Stream, outputs
from .truth import ENDS

pytestmark = [pytest.mark.slow, one_rank]

POEM = "Tyger Tyger, burning bright,"
CHAT = "<|user|>I wandered lonely as a cloud<|eot|><|assistant|>"


@both_models
@pytest.mark.parametrize(("prompt", "end"), [("床前明月光", 1), (CHAT, 2)])
def test_every_eos_of_the_model_ends_the_text(group, truth, model, prompt, end):
    expected = truth.greedy(truth.ids(prompt), 200)
    assert expected[-1] == end and len(expected) < 200
    events = group.events(model, text_input=prompt, max_tokens=200, id=f"eos {end}")
    assert len(events) == len(expected)
    assert text_of(events) == truth.text(expected)
    assert group.ask(model, text_input=prompt, max_tokens=200)["text_output"] == truth.text(expected)


@both_models
def test_a_template_that_writes_bos_does_not_double_it(group, truth, model):
    expected = truth.text(truth.greedy(truth.ids(CHAT), 100))
    assert group.ask(model, text_input=f"<|begin|>{CHAT}", max_tokens=100)["text_output"] == expected


@both_models
@pytest.mark.parametrize("end_id", [-1, 1, 2])
def test_an_end_id_of_the_request_is_the_only_end(group, truth, model, end_id):
    expected = truth.greedy(truth.ids(CHAT), 120, ends=(end_id,))
    assert 2 in expected[: -1 if end_id == 2 else None] or end_id == 2
    events = group.events(model, text_input=CHAT, max_tokens=120, end_id=end_id, id=f"end {end_id}")
    assert len(events) == len(expected)
    assert text_of(events) == truth.text(expected)


@both_models
def test_stop_word_of_whole_tokens(group, truth, model):
    answer = truth.greedy(truth.ids(POEM), 60)
    word = truth.text(answer[6:9])
    assert truth.text(answer).count(word) == 1
    events = group.events(model, text_input=POEM, max_tokens=60, stop_words=["not in it", word], id="whole")
    assert text_of(events) == truth.text(answer[:9])


@pytest.mark.parametrize("stream", [True, False])
def test_stop_word_that_straddles_tokens(group, truth, stream):
    """It begins inside one token and ends inside the next; the text ends with the token that completes it."""
    answer = truth.greedy(truth.ids(POEM), 60)
    pieces = [truth.text([id]) for id in answer]
    place = next(n for n in range(4, 50) if len(pieces[n]) > 1 and len(pieces[n + 1]) > 1)
    word = pieces[place][-1] + pieces[place + 1][0]
    before = "".join(pieces[:place])
    assert truth.text(answer).index(word) == len(before + pieces[place]) - 1
    asked = {"text_input": POEM, "max_tokens": 60, "stop_words": [word]}
    if stream:
        text = text_of(group.events("tensorrt_llm_bls", **asked))
    else:
        text = group.ask("tensorrt_llm_bls", **asked)["text_output"]
    assert text == before + pieces[place] + pieces[place + 1]


def test_stop_word_inside_emoji(group, truth):
    """The bytes of a character come in several tokens; the word is found when its last byte is there."""
    answer = truth.text(truth.greedy(truth.ids("A tiny baker"), 200))
    text = text_of(group.events("tensorrt_llm_bls", text_input="A tiny baker", max_tokens=200, stop_words=["🦊"]))
    assert text == answer[: answer.index("🦊") + 1]


@both_models
def test_bad_words(group, truth, model):
    answer = truth.greedy(truth.ids(POEM), 40)
    banned = [truth.text(answer[2:3]), truth.text(answer[10:12])]
    words = [[id] for id in answer[2:3]] + [answer[10:12]]
    # Also after a space, as preprocessing takes a word that does not begin with one.
    words += [truth.tokenizer.encode(" " + word, add_special_tokens=False).ids for word in banned]
    words = [list(word) for word in {tuple(word) for word in words}]
    process = NoBadWordsLogitsProcessor(words)
    expected = truth.greedy(truth.ids(POEM), 40, process=process)
    text = group.ask(model, text_input=POEM, max_tokens=40, bad_words=banned)["text_output"]
    assert text == truth.text(expected) != truth.text(answer)
    assert banned[0] not in text and banned[1] not in text


@both_models
def test_min_tokens(group, truth, model):
    prompt = truth.ids(CHAT)
    least = len(truth.greedy(prompt, 200)) + 7
    process = MinNewTokensLengthLogitsProcessor(len(prompt), least, list(ENDS))
    expected = truth.greedy(prompt, 120, process=process)
    events = group.events(model, text_input=CHAT, max_tokens=120, min_tokens=least, id="least")
    assert len(events) == len(expected) >= least
    assert text_of(events) == truth.text(expected)


def counted(presence: float, frequency: float):
    """presence_penalty and frequency_penalty by the definition: once, and for each time it occurs."""

    def process(ids, logits):
        counts = torch.bincount(ids[0], minlength=logits.shape[1])
        return logits - presence * (counts > 0) - frequency * counts

    return process


@pytest.mark.parametrize(
    ("penalty", "process"),
    [
        ({"repetition_penalty": 2.0}, RepetitionPenaltyLogitsProcessor(2.0)),
        ({"presence_penalty": 10.0}, counted(10, 0)),
        ({"frequency_penalty": 6.0}, counted(0, 6)),
    ],
    ids=["repetition", "presence", "frequency"],
)
@both_models
def test_penalties(group, truth, model, penalty, process):
    prompt = truth.ids(POEM)
    expected = truth.greedy(prompt, 40, process=process)
    assert expected != truth.greedy(prompt, 40)
    assert group.ask(model, text_input=POEM, max_tokens=40, **penalty)["text_output"] == truth.text(expected)


@both_models
def test_embedding_bias(group, truth, model):
    prompt = truth.ids(POEM)
    token = truth.greedy(prompt, 6)[5]
    word = truth.text([token])
    assert truth.tokenizer.encode(word, add_special_tokens=False).ids == [token]
    bias = torch.zeros(512)
    bias[token] = -30
    expected = truth.greedy(prompt, 30, process=lambda _, logits: logits + bias)
    assert expected != truth.greedy(prompt, 30)
    asked = {"embedding_bias_words": [word], "embedding_bias_weights": [-30.0]}
    assert group.ask(model, text_input=POEM, max_tokens=30, **asked)["text_output"] == truth.text(expected)


def drawn(group, requests: int = 40, **sampling) -> Counter:
    """How often each token follows BOS, over 16 sequences a request."""
    counts: Counter = Counter()
    asked = {"input_ids": [0], "input_lengths": 1, "request_output_len": 1, "num_return_sequences": 16}
    with Stream(group.grpc) as stream:
        for number in range(requests):
            stream.send("tensorrt_llm", seed=1000 * number, **asked, **sampling)
            counts.update(outputs(response)["output_ids"][0][0] for response in stream.rest())
    return counts


@pytest.mark.parametrize(
    ("sampling", "temperature"),
    [
        ({"runtime_top_k": 5}, 1),
        ({"runtime_top_k": 5, "temperature": 0.5}, 0.5),
        ({"runtime_top_k": 5, "temperature": 3.0}, 3),
        ({"runtime_top_p": 0.6}, 1),
    ],
    ids=["top_k", "cold", "hot", "top_p"],
)
def test_draws_follow_the_probabilities(group, truth, sampling, temperature):
    chances = truth.next_probabilities([0]).pow(1 / temperature)
    chances, ids = (chances / chances.sum()).sort(descending=True)
    if "runtime_top_k" in sampling:
        kept = sampling["runtime_top_k"]
    else:
        kept = int((chances.cumsum(0) < sampling["runtime_top_p"]).sum()) + 1
    expected = dict(zip(ids[:kept].tolist(), (chances[:kept] / chances[:kept].sum()).tolist(), strict=True))
    counts = drawn(group, **sampling)
    assert set(counts) <= set(expected)
    found = {id: counts[id] / counts.total() for id in expected}
    assert found == pytest.approx(expected, abs=0.08)  # four standard deviations of 640 draws


@both_models
def test_equal_seeds_give_equal_texts(group, model):
    asked = {"text_input": "Once", "max_tokens": 40, "temperature": 2.0, "top_k": 20, "top_p": 0.95}
    texts = [group.ask(model, seed=seed, **asked)["text_output"] for seed in (7, 7, 8, 2**63 + 5, 2**63 + 5)]
    assert texts[0] == texts[1] and texts[3] == texts[4]
    assert len(set(texts)) == 3


def test_sequences_of_a_request_differ(group):
    with Stream(group.grpc) as stream:
        stream.send("tensorrt_llm_bls", text_input="Once", max_tokens=40, top_k=20, num_return_sequences=3, seed=5)
        texts = [outputs(response)["text_output"][0] for response in stream.rest()]
    assert len(set(texts)) == len(texts) == 3


@both_models
@pytest.mark.parametrize("greedy", [{"top_k": 1}, {"temperature": 0.0}, {"top_k": 1, "top_p": 0.5, "seed": 9}, {}])
def test_greedy_however_it_is_asked_for(group, truth, model, greedy):
    expected = truth.text(truth.greedy(truth.ids(POEM), 30))
    assert group.ask(model, text_input=POEM, max_tokens=30, **greedy)["text_output"] == expected
