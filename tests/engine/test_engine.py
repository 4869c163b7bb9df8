"""What a request goes through on one rank: cancellation, queue, reuse, pauses, several sequences, a long soak."""

import queue
import random
import time

import pytest

from tests.engine.conftest import started
from toolkit.errors import Busy, InputRefused

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def wait_idle(group, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while group.engine.stats().active:
        assert time.monotonic() < deadline, group.engine.stats()
        time.sleep(0.01)
    assert group.engine.stats().blocks_used == 0


def test_n_tokens_are_n_events_the_last_one_finished(group):
    events = group.submit(PROMPT, 7).wait()
    assert [event.finished for event in events] == [False] * 6 + [True]
    assert None not in [event.token for event in events]


def test_times_are_in_order(group):
    events = group.submit(PROMPT, 5).wait()
    one = events[0].sequence
    before = time.monotonic_ns()
    assert 0 < one.arrival_ns <= one.first_scheduled_ns < one.first_token_ns < one.last_token_ns < before


def test_ends_at_the_end_id_and_at_stop_words(group):
    tokens = group.generate(PROMPT, 20)
    assert group.generate(PROMPT, 20, end_id=tokens[4]) == tokens[: tokens.index(tokens[4]) + 1]
    pair = tuple(tokens[6:8])
    end = next(i for i in range(1, 20) if tuple(tokens[i - 1 : i + 1]) == pair)
    assert group.generate(PROMPT, 20, stop_words_list=[pair]) == tokens[: end + 1]


def test_bad_words_never_come(group):
    tokens = group.generate(PROMPT, 20)
    pair = tuple(tokens[6:8])
    without = group.generate(PROMPT, 20, bad_words_list=[pair])
    assert pair not in set(zip([*PROMPT, *without], without, strict=False))
    assert without[:7] == tokens[:7]


def test_min_tokens(group):
    first = group.generate(PROMPT, 1)[0]
    assert group.generate(PROMPT, 20, end_id=first) == [first]
    assert len(group.generate(PROMPT, 20, end_id=first, min_tokens=9)) >= 9


def test_same_seed_same_text_whoever_else_is_in_the_batch(group):
    options = {"runtime_top_p": 0.95, "temperature": 1.3}
    alone = group.generate(PROMPT, 25, seed=11, **options)
    crowd = [group.submit([n, n + 1, n + 2], 30, seed=n, **options) for n in range(6)]
    among = group.submit(PROMPT, 25, seed=11, **options)
    assert among.tokens() == alone
    assert len({tuple(one.tokens()) for one in crowd}) == 6
    assert group.generate(PROMPT, 25, seed=12, **options) != alone


def test_draws_without_a_seed_differ_and_come_again_in_a_new_engine(tiny):
    """samplingConfig.h takes the next of a generator that begins with 0 for each request that gives no seed."""
    options = {"runtime_top_p": 0.95, "temperature": 1.3}
    texts = []
    for _ in range(2):
        with started(tiny) as group:
            texts.append([group.generate(PROMPT, 25, **options) for _ in range(3)])
            several = group.submit(PROMPT, 25, num_return_sequences=2, **options).wait()
            first = [event.token for event in several if event.sequence.index == 0]
            assert first == group.generate(PROMPT, 25, seed=0, **options)
    assert texts[0] == texts[1] and len(set(map(tuple, texts[0]))) == 3


def test_several_sequences_of_one_request(group):
    options = {"runtime_top_p": 0.95, "temperature": 1.5}
    events = group.submit(PROMPT, 12, seed=3, num_return_sequences=3, **options).wait()
    texts = [[event.token for event in events if event.sequence.index == index] for index in range(3)]
    assert [len(text) for text in texts] == [12, 12, 12]
    assert texts == [group.generate(PROMPT, 12, seed=3 + index, **options) for index in range(3)]


def test_ids_outside_the_vocabulary_disturb_nobody(group):
    """As TensorRT-LLM's own benchmark sends them: any INT32. What is answered is not specified, only that it is."""
    expected = group.generate(PROMPT, 40)
    rnd = random.Random(3)
    beside = group.submit(PROMPT, 40)
    strange = [[rnd.randrange(-(2**31), 2**31) for _ in range(20)] for _ in range(4)]
    options = {"bad_words_list": [(512,), (-7,)], "stop_words_list": [(10**6,)], "repetition_penalty": 1.5}
    answers = [group.submit(ids, 10, **options) for ids in strange]
    assert [len(answer.tokens()) for answer in answers] == [10] * 4
    assert beside.tokens() == expected


def test_a_batch_begins_whole_or_not_at_all(group):
    from toolkit.engine.request import GenerationRequest

    events: queue.SimpleQueue = queue.SimpleQueue()
    batch = [GenerationRequest(input_ids=PROMPT[: n + 2], request_output_len=n + 3) for n in range(3)]
    group.engine.submit(batch, events.put)
    found: list[list[int]] = [[], [], []]
    unfinished = 3
    while unfinished:
        event = events.get(timeout=20)
        found[event.sequence.row].append(event.token)
        unfinished -= event.finished
    assert found == [group.generate(request.input_ids, request.request_output_len) for request in batch]
    with pytest.raises(InputRefused, match="max_seq_len"):
        group.engine.submit([batch[0], GenerationRequest(input_ids=PROMPT, request_output_len=119)], events.put)
    assert group.engine.stats().active == 0 and events.empty()


def test_cancelled_at_once_and_on_the_way(group):
    started_one, waiting = group.submit(PROMPT, 100), group.submit(PROMPT, 100)
    started_one.events.get(timeout=30)
    group.engine.cancel(waiting.sequences)
    group.engine.cancel(started_one.sequences)
    group.engine.cancel(started_one.sequences)  # once more is no harm
    for answer in (started_one, waiting):
        last = answer.wait()[-1]
        assert (last.token, last.finished) == (None, True)
    wait_idle(group)
    assert all(len(answer.sequences[0].output) < 100 for answer in (started_one, waiting))


def test_cancelling_what_has_ended_is_no_harm(group):
    answer = group.submit(PROMPT, 2)
    answer.wait()
    group.engine.cancel(answer.sequences)
    assert answer.events.empty()


@pytest.mark.parametrize(
    ("prompt", "tokens", "options", "message"),
    [
        (PROMPT, 119, {}, "max_seq_len"),
        (PROMPT, 1, {"end_id": 600}, "end_id: expected a token id below vocab_size 512, got 600"),
    ],
)
def test_refused_and_the_engine_goes_on(group, prompt, tokens, options, message):
    with pytest.raises(InputRefused, match=message):
        group.submit(prompt, tokens, **options)
    assert len(group.generate(PROMPT, 3)) == 3


def test_a_full_queue_takes_no_sequence_of_a_request(tiny):
    with started(tiny, max_queue_size=3) as group:
        running = []
        for n in range(8):  # as many as run at once
            running.append(group.submit([n] * 20, 100))
            running[-1].events.get(timeout=20)
        accepted = group.submit(PROMPT, 5)
        with pytest.raises(Busy, match="Maximum queue size of 3"):
            group.submit(PROMPT, 5, num_return_sequences=3)
        assert group.engine.stats().active == 9
        for answer in running:
            group.engine.cancel(answer.sequences)
        assert len(accepted.tokens()) == 5
        wait_idle(group)


def test_a_known_prefix_is_reused_and_gives_the_same_text(tiny):
    prompt = list(range(40, 80))
    with started(tiny, enable_kv_cache_reuse=False) as group:
        expected = group.generate(prompt, 20)
        assert group.generate(prompt, 20) == expected
        assert group.engine.stats().blocks_reused == 0
    with started(tiny) as group:
        assert group.generate(prompt, 20) == expected
        assert group.generate(prompt, 20) == expected
        assert group.engine.stats().blocks_reused == 4  # of 8 tokens; the last prompt token is computed


def test_paused_and_computed_again_gives_the_same_text(tiny):
    prompts = [[n, n + 3, n + 7, n + 1] for n in range(6)]
    with started(tiny) as group:
        expected = [group.generate(prompt, 60) for prompt in prompts]
    with started(tiny, batch_scheduler_policy="max_utilization", max_tokens_in_paged_kv_cache=136) as group:
        answers = [group.submit(prompt, 60) for prompt in prompts]
        paused = 0
        while group.engine.stats().active:
            paused = max(paused, group.engine.stats().paused)
            time.sleep(0.002)
        assert [answer.tokens() for answer in answers] == expected
        assert paused > 0
        wait_idle(group)


def test_closing_cancels_what_runs(tiny):
    with started(tiny) as group:
        answers = [group.submit(PROMPT, 100) for _ in range(3)]
        group.engine.close()
        assert all(answer.wait()[-1].token is None for answer in answers)
        with pytest.raises(Busy, match="shutting down"):
            group.submit(PROMPT, 1)


def soak(group, count: int) -> None:
    """Random requests, one in five cancelled on the way: all end, and every block comes back."""
    rnd, running = random.Random(4), []
    for number in range(count):
        length, tokens = rnd.randrange(1, 90), rnd.randrange(1, 30)
        prompt = [rnd.randrange(4) for _ in range(length)]  # few ids, so that prefixes meet
        sampled = {"runtime_top_p": 0.9, "seed": number} if number % 2 else {}
        running.append((tokens, group.submit(prompt, tokens, **sampled)))
        if number % 5 == 0:
            group.engine.cancel(rnd.choice(running)[1].sequences)
        if len(running) > 20:
            check_end(*running.pop(rnd.randrange(len(running))))
    for tokens, answer in running:
        check_end(tokens, answer)
    wait_idle(group)


def check_end(tokens: int, answer) -> None:
    events = answer.wait()
    assert len(events) == tokens or events[-1].token is None
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.slow
def test_soak(tiny):
    with started(tiny, max_queue_size=64) as group:
        soak(group, 300)
