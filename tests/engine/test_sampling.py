"""Choosing tokens, against the logits processors of transformers and the arithmetic of chance."""

import itertools
import math
from collections import Counter

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from toolkit.engine.request import GenerationRequest
from toolkit.engine.sampling import Sampler

SIZE = 40
PROMPT = [3, 5, 5, 7]
LOGITS = torch.randn(SIZE, generator=torch.Generator().manual_seed(1)) * 3


def sampler(seed: int = 0, **options) -> Sampler:
    return Sampler(GenerationRequest(input_ids=PROMPT, request_output_len=9, **options), seed)


def draw(logits=LOGITS, tokens=PROMPT, **options) -> int:
    return sampler(**options).next(logits, tokens)[0]


def log_probs(tokens=PROMPT, **options) -> torch.Tensor:
    return sampler(**options).adjusted(LOGITS, tokens).log_softmax(0).float()


def processed(processors, tokens=PROMPT, logits=LOGITS) -> torch.Tensor:
    ids, scores = torch.tensor([tokens]), logits[None].clone()
    for processor in processors:
        scores = processor(ids, scores)
    return scores.log_softmax(1)[0]


def observed(times: int = 4000, **options) -> torch.Tensor:
    """How often each token is drawn, one after the other by one sampler."""
    one = sampler(**options)
    counts = Counter(one.next(LOGITS, PROMPT)[0] for _ in range(times))
    return torch.tensor([counts[token] / times for token in range(SIZE)])


def test_greedy_unless_asked_to_draw():
    likeliest = int(LOGITS.argmax())
    for options in ({}, {"temperature": 5.0}, {"runtime_top_k": 1, "temperature": 9.0}, {"seed": 3}):
        assert draw(**options) == likeliest
    assert draw(temperature=0.0, runtime_top_p=0.9) == likeliest


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"temperature": 0.4}, [TemperatureLogitsWarper(0.4)]),
        ({"repetition_penalty": 1.7}, [RepetitionPenaltyLogitsProcessor(1.7)]),
        (
            {"temperature": 2.0, "repetition_penalty": 0.6},
            [TemperatureLogitsWarper(2.0), RepetitionPenaltyLogitsProcessor(0.6)],
        ),
        ({"bad_words_list": [(5, 7, 2), (9,), (1, 4)]}, [NoBadWordsLogitsProcessor([[5, 7, 2], [9], [1, 4]])]),
        ({"min_tokens": 2, "end_id": 11}, [MinNewTokensLengthLogitsProcessor(4, 2, 11)]),
    ],
)
@pytest.mark.parametrize("output", [[], [8], [8, 1], [5, 7]])
def test_same_distribution_as_transformers(options, processors, output):
    tokens = PROMPT + output
    assert log_probs(tokens, **options).allclose(processed(processors, tokens), atol=1e-5)


def test_presence_and_frequency_count_prompt_and_output():
    tokens = [*PROMPT, 5, 30]
    expected = LOGITS.clone()
    for token, count in Counter(tokens).items():
        expected[token] -= 0.5 + 0.25 * count
    found = log_probs(tokens, presence_penalty=0.5, frequency_penalty=0.25)
    assert found.allclose(expected.log_softmax(0), atol=1e-5)


def test_penalties_follow_the_output_as_it_grows():
    one = sampler(frequency_penalty=1000.0)
    tokens = list(PROMPT)
    for _ in range(SIZE - len(set(PROMPT))):
        tokens.append(one.next(LOGITS, tokens)[0])
    assert len(set(tokens)) == SIZE  # each token once before any comes again


def test_embedding_bias_and_log_prob():
    bias = torch.zeros(SIZE)
    bias[17] = 50.0
    token, log_prob = sampler(embedding_bias=bias.numpy(), return_log_probs=True).next(LOGITS, PROMPT)
    assert token == 17
    assert log_prob == pytest.approx(float((LOGITS + bias).log_softmax(0)[17]), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"runtime_top_k": 4}, [TopKLogitsWarper(4)]),
        ({"runtime_top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"runtime_top_p": 1.0}, []),
        ({"runtime_top_k": 6, "runtime_top_p": 0.7}, [TopKLogitsWarper(6), TopPLogitsWarper(0.7)]),
        ({"runtime_top_p": 0.9, "temperature": 3.0}, [TemperatureLogitsWarper(3.0), TopPLogitsWarper(0.9)]),
    ],
)
def test_draws_follow_the_distribution(options, processors):
    expected = processed(processors).exp()
    found = observed(**options)
    assert not found[expected == 0].any()  # never a token that was cut
    assert (found - expected).abs().max() < 0.03  # four standard deviations of 4000 draws


def test_log_prob_of_a_draw_is_of_the_whole_vocabulary():
    token, log_prob = sampler(runtime_top_k=5, return_log_probs=True).next(LOGITS, PROMPT)
    assert log_prob == pytest.approx(float(LOGITS.log_softmax(0)[token]), abs=1e-5)


def test_top_p_looks_past_the_likeliest_thousand():
    flat = torch.zeros(5000)
    one = sampler(runtime_top_p=0.9)
    drawn = {one.next(flat, PROMPT)[0] for _ in range(500)}
    assert len(drawn) > 400


def test_same_seed_same_tokens():
    def tokens(**options):
        one = sampler(runtime_top_p=1.0, temperature=3.0, **options)
        return [one.next(LOGITS, PROMPT)[0] for _ in range(20)]

    assert tokens(seed=5) == tokens(seed=5)
    assert tokens(seed=5) != tokens(seed=6)
    assert tokens(seed=2**64 - 1) != tokens(seed=5)


@pytest.mark.parametrize(
    ("words", "output", "token", "ends"),
    [
        ([(9,)], [], 9, True),
        ([(9,)], [9], 8, False),
        ([(1, 2, 3)], [1, 2], 3, True),
        ([(1, 2, 3)], [2], 3, False),
        ([(1, 2, 3), (2, 3)], [2], 3, True),
        ([(7, 1)], [], 1, True),  # a stop word may begin in the prompt, as in TensorRT-LLM
        ([(1, 2, 3, 4, 5, 6, 7, 8)], [], 8, False),
        ([], [], 11, True),
    ],
)
def test_what_ends_a_text(words, output, token, ends):
    assert sampler(stop_words_list=words, end_id=11).ends(PROMPT + output, token) is ends


def test_no_end_before_min_tokens():
    one = sampler(stop_words_list=[(9,), (1, 2)], end_id=11, min_tokens=3)
    logits = torch.zeros(SIZE)
    logits[[9, 11]] = 100.0
    assert one.next(logits, [*PROMPT, 4, 4])[0] not in (9, 11)
    assert one.next(logits, [*PROMPT, 4, 4, 4])[0] in (9, 11)
    assert not one.ends([*PROMPT, 1], 2)
    assert one.ends([*PROMPT, 4, 1], 2)


def test_end_id_minus_one_never_ends():
    assert not any(sampler(end_id=-1).ends(PROMPT, token) for token in range(SIZE))


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 9.9e-7])
@pytest.mark.parametrize("options", [{"runtime_top_p": 1.0}, {"runtime_top_k": 9}, {"runtime_top_k": 9, "seed": 5}])
def test_a_temperature_of_next_to_nothing_takes_the_likeliest(temperature, options):
    one = sampler(temperature=temperature, return_log_probs=True, **options)
    token, log_prob = one.next(LOGITS, PROMPT)
    assert token == int(LOGITS.argmax())
    assert log_prob == pytest.approx(float(LOGITS.log_softmax(0).max()), abs=1e-5)  # as at temperature 1


def test_a_huge_temperature_makes_all_tokens_as_likely():
    found = observed(runtime_top_p=1.0, temperature=3.4e38)
    assert (found - 1 / SIZE).abs().max() < 0.03


HUGE = 3.4e38
EXTREME = {
    "temperature": [1e-6, HUGE],
    "repetition_penalty": [1e-45, HUGE],
    "presence_penalty": [-HUGE, HUGE],
    "frequency_penalty": [-HUGE, HUGE],
    "embedding_bias": [-HUGE, HUGE],
}


@pytest.mark.parametrize("chosen", list(itertools.product(*EXTREME.values())))
@pytest.mark.parametrize("drawing", [{}, {"runtime_top_p": 0.9}, {"runtime_top_k": 5, "runtime_top_p": 1e-45}])
def test_extreme_values_together_still_give_a_token_and_its_log_prob(chosen, drawing):
    options = dict(zip(EXTREME, chosen, strict=True))
    bias = torch.zeros(SIZE)
    bias[::3] = options["embedding_bias"]
    options["embedding_bias"] = bias.numpy()
    token, log_prob = sampler(return_log_probs=True, **options, **drawing).next(LOGITS, PROMPT)
    assert 0 <= token < SIZE
    assert log_prob is not None and math.isfinite(log_prob) and log_prob <= 0


def test_top_k_is_1024_at_most():
    logits = torch.arange(2000.0) * 1e-6  # all about as likely, the last the likeliest
    one = sampler(runtime_top_k=2**31 - 1)
    drawn = {one.next(logits, PROMPT)[0] for _ in range(3000)}
    assert min(drawn) >= 2000 - 1024 and len(drawn) > 900


def test_top_p_decays_to_its_minimum_and_is_set_back():
    """By hand, as computeToppDecay in samplingTopPKernels.cu: p x decay after each token, or the minimum."""
    one = sampler(
        runtime_top_p=0.8, runtime_top_p_decay=0.5, runtime_top_p_min=0.15, runtime_top_p_reset_ids=9, temperature=9.0
    )
    peak, seen = torch.zeros(SIZE), []
    for token in (8, 8, 8, 9, 8):
        seen.append(one.top_p)
        peak[:] = 0.0
        peak[token] = 1e9
        assert one.next(peak, PROMPT)[0] == token
    assert seen == pytest.approx([0.8, 0.4, 0.2, 0.15, 0.8])


def test_ids_that_the_vocabulary_does_not_have_are_passed_over():
    tokens = [-1, SIZE, 2**31 - 1, 5]
    expected = log_probs([5], repetition_penalty=1.7)
    options = {"bad_words_list": [(SIZE,), (-3,), (5, 2**31 - 1)], "stop_words_list": [(SIZE,)], "min_tokens": 9}
    one = Sampler(GenerationRequest(input_ids=tokens, request_output_len=9, repetition_penalty=1.7, **options), 0)
    assert one.adjusted(LOGITS, tokens).log_softmax(0).float().allclose(expected)
