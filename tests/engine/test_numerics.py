"""The engine against transformers on the unsharded model: the same tokens, log-probabilities and logits."""

import itertools
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.conftest import started

LENGTH = 12
PROMPTS = [[(7 * i * n + n) % 300 for i in range(1, n + 1)] for n in (1, 3, 30, 75)]
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


@cache
def reference(model_dir):
    """For each prompt greedy tokens [LENGTH] and logits [LENGTH, vocab] of transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        tokens, rows = list(prompt), []
        with torch.inference_mode():
            for _ in range(LENGTH):
                rows.append(model(torch.tensor([tokens])).logits[0, -1])
                tokens.append(int(rows[-1].argmax()))
        answers.append((tokens[len(prompt) :], torch.stack(rows)))
    return answers


def check(deployment, model_dir):
    """Generate for all prompts at once, so that contexts, chunks and generations share steps."""
    with started(deployment) as group:
        seen = watch_logits(group.engine)
        answers = [group.submit(prompt, LENGTH, return_log_probs=True) for prompt in PROMPTS]
        for answer, (tokens, logits) in zip(answers, reference(model_dir), strict=True):
            events = answer.wait()
            assert [event.token for event in events] == tokens
            chosen = logits.log_softmax(1)[torch.arange(LENGTH), tokens]
            assert torch.tensor([event.log_prob for event in events]).allclose(chosen, atol=1e-4)
            assert events[-1].cum_log_prob == pytest.approx(float(chosen.sum()), abs=1e-3)
            found = torch.stack(seen[answer.sequences[0]])
            assert (found - logits).abs().max() < 1e-3 * logits.abs().max()


def watch_logits(engine):
    """Logits never leave the engine, so they are taken where it chooses its tokens."""
    seen, choose = {}, engine._choose

    def watch(logits, sequences):
        for row, sequence in zip(logits, sequences, strict=True):
            seen.setdefault(sequence, []).append(row.clone())
        return choose(logits, sequences)

    engine._choose = watch
    return seen


@pytest.fixture(scope="module")
def deep(make_llama):
    """Ten layers over 1, 2 and 4 stages: 10, 5+5, 3+3+2+2."""
    return make_llama(num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=4)


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), list(itertools.product((1, 2, 4), repeat=2)))
def test_every_layout(deep, deploy, tp, pp):
    check(deploy(deep, tp, pp), deep)


SHAPES = {
    "grouped heads repeated on two ranks each": {},
    "every bias": {"attention_bias": True, "mlp_bias": True},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "linear scaling": {"rope_parameters": LINEAR},
    "tied embeddings and a head size of its own": {"tie_word_embeddings": True, "head_dim": 32},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_on_one_rank(make_llama, deploy, shape):
    model = make_llama(**SHAPES[shape])
    check(deploy(model), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "tp", "pp"), [("grouped heads repeated on two ranks each", 4, 1), ("every bias", 2, 2)]
)
def test_shapes_that_splitting_can_break(make_llama, deploy, shape, tp, pp):
    model = make_llama(**SHAPES[shape])
    check(deploy(model, tp, pp), model)


@pytest.mark.parametrize("options", [{"enable_chunked_context": False}, {"enable_kv_cache_reuse": False}])
def test_chunks_and_reuse_change_nothing(make_llama, deploy, options):
    model = make_llama()
    deployment = deploy(model, limits={"max_sequences": 8, "max_num_tokens": 128, "max_seq_len": 128})
    with started(deployment, **options) as group:
        for prompt, (tokens, _) in zip(PROMPTS, reference(model), strict=True):
            assert group.generate(prompt, LENGTH) == tokens


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), [(1, 4), (2, 2)])
def test_chunks_that_follow_each_other_through_the_stages_change_nothing(deep, deploy, tp, pp):
    """A block a step, of 8 tokens: the prompt of 75 tokens is in as many steps at once as there are stages."""
    deployment = deploy(deep, tp, pp, limits={"max_sequences": 4 * pp, "max_num_tokens": 8, "max_seq_len": 128})
    check(deployment, deep)
    in_flight = []
    with started(deployment) as group:
        begin = group.engine._begin

        def watch(step, now):
            in_flight.append(group.engine.stats().context_tokens)
            return begin(step, now)

        group.engine._begin = watch
        found = group.generate(PROMPTS[-1], 1)
    assert found == reference(deep)[-1][0][:1]
    assert in_flight[:pp] == [8 * (step + 1) for step in range(pp)]
    assert len(in_flight) == 10 and max(in_flight) == 8 * pp
