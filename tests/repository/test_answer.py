"""Where an answer ends, and what its text is then. Tokens here are characters or words given by hand."""

import pytest

from .sources import answer

VOCABULARY = ["", "bo", "ok!", "o", "k", " ok", "x", "b", "END", "ab", "c", "abc"]
END = VOCABULARY.index("END")


class Words:
    """A stream of text for tokens that are whole words."""

    def push(self, ids, last=False):
        return "".join(VOCABULARY[id] for id in ids if id != END)


def run(words, **ends):
    """(text, tokens taken, whether the text ended it) of an answer that tensorrt_llm would give as `words`."""
    ids = [VOCABULARY.index(word) for word in words]
    asked = answer.Answer(Words(), answer.Ends(**{"max_tokens": 100, "end_id": END, **ends}))
    text = "".join(asked.push([id]) for id in ids if not asked.ended)
    return text, len(asked.ids), asked.ended_by_text


@pytest.mark.parametrize(
    ("words", "stop", "text", "taken"),
    [
        (["bo", "ok!", "x", "x"], "ok", "book!", 2),  # a part of a token
        (["x", "o", "k", "x"], "ok", "xok", 3),  # over two tokens
        (["bo", "k", "x"], "ok", "bok", 2),  # begins inside a token
        (["x", " ok", "x"], "ok", "x ok", 2),
        (["o", "x", "k"], "ok", "oxk", 3),  # not there
        (["b", "o", "o", "k", "x"], "book", "book", 4),
    ],
)
def test_stop_words_in_the_text(words, stop, text, taken):
    assert run(words, stop_words=[stop])[:2] == (text, taken)


def test_stop_words_in_the_text_wait_for_min_tokens():
    words = ["o", "k", "x", "b", "o", "k", "x"]
    assert run(words, stop_words=["ok"], min_tokens=4)[:2] == ("okxbok", 6)
    assert run(words, stop_words=["ok"], min_tokens=2)[:2] == ("ok", 2)


def test_a_word_passed_over_is_not_found_again_later():
    """The longer word keeps the shorter one, which came before min_tokens, in the text that is searched."""
    words = ["ab", "c", "x", "x"]
    assert run(words, stop_words=["ab", "xxxxxxxx"], min_tokens=2)[:2] == ("abcxx", 4)


def test_end_id_and_max_tokens():
    assert run(["b", "END", "x"]) == ("b", 2, False)
    assert run(["b", "b", "b"], max_tokens=2) == ("bb", 2, False)
    assert run(["b", "END", "x"], end_id=-1) == ("bx", 3, False)


def test_stop_ids_end_as_tensorrt_llm_ends_them():
    bo, ok = VOCABULARY.index("bo"), VOCABULARY.index("ok!")
    assert run(["x", "bo", "ok!", "x"], stop_ids=[[bo, ok]]) == ("xbook!", 3, False)
    assert run(["bo", "ok!", "x"], stop_ids=[[bo, ok]], min_tokens=3) == ("book!x", 3, False)
    assert run(["ok!", "x"], stop_ids=[[ok]], min_tokens=3) == ("ok!", 1, False)


def test_text_that_ends_it_is_told_apart():
    assert run(["o", "k", "x"], stop_words=["ok"])[2] is True


def test_several_tokens_at_once_stop_inside():
    asked = answer.Answer(Words(), answer.Ends(max_tokens=9, end_id=END, stop_words=["ok"]))
    assert asked.push([VOCABULARY.index(word) for word in ("x", "o", "k", "x")]) == "xok"
    assert asked.ids == [VOCABULARY.index(word) for word in ("x", "o", "k")]
