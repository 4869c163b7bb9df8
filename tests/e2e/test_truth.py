"""On 1, 4 and 8 ranks: the tokens, the text and the log-probabilities of the unsharded model."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from .group import text_of
from .marks import both_models, every_size

pytestmark = [pytest.mark.slow, every_size]

PROMPTS = (
    "Shall I compare thee",
    "A tiny baker",
    "床前明月光",
    "Eight ranks stood in a line",
    "Nothing that it has learnt: 2 + 2 =",
    "    def greet(name):",
    "\ttabs",
    "é",
)
BAKER = " 👩‍🍳 rose before the sun 🌅 to bake:\none loaf 🍞"


def test_greedy_tokens_and_log_probs(group, truth):
    """All prompts at once, so that they share steps, and again, so that their beginnings are found in the cache."""

    def ask(prompt: str) -> None:
        ids = truth.ids(prompt)
        answer = group.ask(
            "tensorrt_llm", input_ids=ids, input_lengths=len(ids), request_output_len=60, return_log_probs=True
        )
        expected = truth.greedy(ids, 60, ends=())
        assert answer["output_ids"] == expected
        assert answer["output_log_probs"] == pytest.approx(truth.log_probs(ids, expected), abs=1e-3)
        assert answer["cum_log_probs"] == pytest.approx(sum(answer["output_log_probs"]), abs=1e-3)

    with ThreadPoolExecutor() as pool:
        list(pool.map(ask, PROMPTS * 2))


def test_prompt_of_several_chunks(group, truth):
    """A prompt longer than max_num_tokens is computed in pieces."""
    ids = (truth.ids("Shall I compare thee to a summer's day?\n") * 40)[:600]
    answer = group.ask("tensorrt_llm", input_ids=ids, input_lengths=len(ids), request_output_len=20)
    assert answer["output_ids"] == truth.greedy(ids, 20, ends=())


@both_models
def test_text_of_every_prompt(group, truth, model):
    def ask(prompt: str) -> None:
        answer = group.ask(model, text_input=prompt, max_tokens=80)
        assert answer["text_output"] == truth.text(truth.greedy(truth.ids(prompt), 80))

    with ThreadPoolExecutor() as pool:
        list(pool.map(ask, PROMPTS))


@both_models
def test_a_stream_has_an_event_a_token_and_the_exact_text(group, truth, model):
    expected = truth.greedy(truth.ids("A tiny baker"), 200)
    assert truth.text(expected).startswith(BAKER) and len(expected) < 200
    events = group.events(model, text_input="A tiny baker", max_tokens=200, id="baker")
    assert text_of(events) == truth.text(expected)
    assert len(events) == len(expected)


@both_models
def test_a_stream_cut_anywhere_has_as_many_events_as_tokens(group, truth, model):
    """Also inside an emoji, of which nothing but replacement characters can be said then."""
    tokens = truth.greedy(truth.ids("A tiny baker"), 12)
    for count in range(1, len(tokens) + 1):
        events = group.events(model, text_input="A tiny baker", max_tokens=count, id=f"cut {count}", end_id=-1)
        assert len(events) == count
        assert text_of(events) == truth.text(tokens[:count])
