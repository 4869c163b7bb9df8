"""The texts of a load test's requests. Each is made from its number, when it is needed."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from toolkit.config.workload import LoadWorkload
from toolkit.errors import ToolkitError
from toolkit.model.chat_template import ChatTemplate, Messages, chat_message
from toolkit.workload.own import OwnPrompt
from toolkit.workload.prompts import QUESTIONS
from toolkit.workload.sharegpt import Turn
from toolkit.workload.trace import TraceLine, check_length, tokens_of
from toolkit.workload.traffic import lengths, prompt_of
from toolkit.workload.words import Counter, Piece, Writer

SHARED = 0
"""The name of the piece that all synthetic prompts begin with. The piece of request n has the name n + 1."""
SHORTEN = "Raise the limit or shorten the requests."


class Text(NamedTuple):
    """A prompt and its length."""

    prompt: str
    tokens: int
    messages: Messages | None = None
    """The prompt as messages, for servers that apply the chat template. None: one message from the user."""


class Contents(ABC):
    """The texts of all requests, by number."""

    outputs: Sequence[int]
    """Tokens to ask for, by number."""

    @abstractmethod
    def text(self, number: int) -> Text:
        """The text of a request that begins a conversation or stands alone."""

    @abstractmethod
    def tokens(self, number: int) -> Sequence[int]:
        """The prompt's token ids, as in toolkit.workload.traffic."""


class Conversations(Contents):
    """Texts of several turns. A conversation has `turns` consecutive numbers."""

    @abstractmethod
    def after(self, number: int, before: Text, answer: str) -> Text:
        """The text of a later turn: the text before, its answer, and the next question."""


class Synthetic(Conversations):
    """Made-up texts with the lengths of a workload."""

    def __init__(self, workload: LoadWorkload, count: int, tokenizer_json: Path, most: int, where: str) -> None:
        self._prompts, self.outputs = array("l"), array("l")
        for prompt, output in islice(lengths(workload, most, where), count):
            self._prompts.append(prompt)
            self.outputs.append(output)
        _check_conversations(self._prompts, self.outputs, workload.turns, most, where)
        self._writer = Writer(tokenizer_json, workload.seed, names=count + 1)
        self._shared = workload.shared_prefix_tokens
        firsts = self._prompts[:: workload.turns]
        own, marks = min(firsts) - max(self._shared, self._writer.added), self._writer.marks
        if 0 < own < marks:  # the writer refuses fewer
            what = f"prompts of {min(firsts)} tokens have {own} of their own, {count:,} requests need {marks} to differ"
            raise ToolkitError(what, where=where, hint="Make them longer, or send fewer.")

    def text(self, number: int) -> Text:
        size = self._prompts[number]
        pieces = [Piece(SHARED, self._shared), Piece(number + 1, size - self._shared)]
        prompt = self._writer.prompt(pieces[not self._shared :])
        return Text(prompt, size, (chat_message("user", prompt),))

    def after(self, number: int, before: Text, answer: str) -> Text:
        more = self._writer.more(Piece(number + 1, self._prompts[number]))
        prompt = before.prompt + answer + more
        messages = (*(before.messages or ()), chat_message("assistant", answer), chat_message("user", more.lstrip()))
        return Text(prompt, self._writer.count(prompt), messages)

    def tokens(self, number: int) -> Sequence[int]:
        return prompt_of(number, self._shared, self._prompts[number])


class Replayed(Contents):
    """Prompts with the lengths of a trace, and its blocks if it names them. After the last comes the first again."""

    def __init__(self, lines: list[TraceLine], count: int, seed: int, tokenizer_json: Path) -> None:
        self._lines = lines
        self.outputs = [lines[number % len(lines)].output_length for number in range(count)]
        largest = max(max([line.number, *line.blocks]) for line in lines)
        self._writer = Writer(tokenizer_json, seed, names=2 * largest + 2)

    def text(self, number: int) -> Text:
        line = self._lines[number % len(self._lines)]
        pieces, left = [], line.input_length
        for block in line.blocks:
            pieces.append(Piece(2 * block, min(line.block_tokens, left)))
            left -= pieces[-1].tokens
        return Text(self._writer.prompt([*pieces, Piece(2 * line.number + 1, left)]), line.input_length)

    def tokens(self, number: int) -> Sequence[int]:
        return tokens_of(self._lines[number % len(self._lines)])


class Recorded(Contents):
    """Questions from recorded conversations, each with the turns before it. After the last comes the first again."""

    def __init__(self, turns: list[Turn], count: int) -> None:
        self._turns = turns
        self.outputs = [turns[number % len(turns)].output_tokens for number in range(count)]

    def text(self, number: int) -> Text:
        turn = self._turns[number % len(self._turns)]
        return Text(turn.prompt, turn.prompt_tokens, turn.messages)

    def tokens(self, number: int) -> Sequence[int]:
        turn = self._turns[number % len(self._turns)]
        return prompt_of(turn.conversation, 0, turn.prompt_tokens)


class Chat(Conversations):
    """The built-in questions in the chat template, shuffled by the seed. After the last comes the first again."""

    def __init__(
        self, workload: LoadWorkload, count: int, template: ChatTemplate, counter: Counter, most: int, where: str
    ) -> None:
        self._template, self._counter = template, counter
        self._questions = random.Random(f"{workload.seed} questions").sample(QUESTIONS, len(QUESTIONS))
        self.outputs = _outputs(workload, count)
        texts = [self._rendered((chat_message("user", question),)) for question in self._questions]
        self._sizes = [text.tokens for text in texts]
        prompts = [self._sizes[number % len(self._sizes)] for number in range(count)]
        _check_conversations(prompts, self.outputs, workload.turns, most, where)

    def text(self, number: int) -> Text:
        return self._rendered((self._question(number),))

    def after(self, number: int, before: Text, answer: str) -> Text:
        return self._rendered((*(before.messages or ()), chat_message("assistant", answer), self._question(number)))

    def tokens(self, number: int) -> Sequence[int]:
        return prompt_of(number % len(self._sizes), 0, self._sizes[number % len(self._sizes)])

    def _question(self, number: int) -> dict[str, str]:
        return chat_message("user", self._questions[number % len(self._questions)])

    def _rendered(self, messages: Messages) -> Text:
        prompt = self._template.render(messages)
        return Text(prompt, self._counter.count(prompt), messages)


class Owned(Contents):
    """The lines of the user's own file. After the last comes the first again."""

    def __init__(
        self,
        workload: LoadWorkload,
        lines: list[OwnPrompt],
        count: int,
        template: ChatTemplate,
        counter: Counter,
        most: int,
        as_messages: bool,
    ) -> None:
        assert workload.prompts is not None  # toolkit/config/workload.py
        self._texts = [_text(own, template, counter, workload.prompts, as_messages) for own in lines]
        drawn = _outputs(workload, count)
        self.outputs = [lines[n % len(lines)].max_tokens or output for n, output in enumerate(drawn)]
        for number, output in enumerate(self.outputs):
            place = number % len(lines)
            where = f"{workload.prompts}:{lines[place].line}"
            check_length(self._texts[place].tokens, output, most, where, SHORTEN)

    def text(self, number: int) -> Text:
        return self._texts[number % len(self._texts)]

    def tokens(self, number: int) -> Sequence[int]:
        return prompt_of(number % len(self._texts), 0, self.text(number).tokens)


def _text(own: OwnPrompt, template: ChatTemplate, counter: Counter, file: Path, as_messages: bool) -> Text:
    if own.messages is None:
        assert own.prompt is not None
        return Text(own.prompt, counter.count(own.prompt))
    if not template.is_there and not as_messages:
        what, hint = "has messages, but the model has no chat template", "Give the text to send as `prompt`."
        raise ToolkitError(what, where=f"{file}:{own.line}", hint=hint)
    prompt = template.render(own.messages)
    return Text(prompt, counter.count(prompt), own.messages)


def _outputs(workload: LoadWorkload, count: int) -> list[int]:
    return [output for _, output in islice(lengths(workload, 2 * 10**9, ""), count)]


def _check_conversations(prompts: Sequence[int], outputs: Sequence[int], turns: int, most: int, where: str) -> None:
    """Raise a ToolkitError for a conversation that is longer than the deployment takes."""
    for first in range(0, len(prompts), turns):
        said, answered = sum(prompts[first : first + turns]), sum(outputs[first : first + turns])
        check_length(said, answered, most, where, SHORTEN if turns == 1 else "Use shorter turns, or fewer.")
