"""One text of a request to tensorrt_llm_bls, from its inputs to its events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from answer import Answer, Ends
from outputs import Event, joined, rows_of_tokens

if TYPE_CHECKING:
    from inner import Inner
    from numpy.typing import NDArray
    from outputs import Outputs
    from server_stream import ServerStream
    from token_text import Detokenizer

NO_WORDS = np.empty((1, 0), object)


class Conversation:
    """One text of a request. `inputs` are those of this model, with a batch dimension of 1.

    `id` is its request id in tensorrt_llm. If tensorrt_llm is not decoupled, its answers are read whole.
    """

    def __init__(
        self,
        inner: Inner,
        outputs: Outputs,
        detokenizer: Detokenizer,
        inputs: Mapping[str, NDArray[Any]],
        id: str,
        decoupled: bool,
    ) -> None:
        self._inner, self._outputs, self._detokenizer = inner, outputs, detokenizer
        self._inputs, self.id, self._decoupled = inputs, id, decoupled
        self._answers: dict[int, Answer] = {}
        self._stream_of_events: ServerStream | None = None
        self._is_left = False
        self.prompt_tokens = 0
        self.output_tokens = 0
        """Tokens in the events so far, of all answers. Whole answers are counted before the first event."""

    def events(self, preprocessed: Mapping[str, NDArray[Any]]) -> Iterator[tuple[list[Any], bool]]:
        """Yield (output tensors, whether they are the last) for each response. Raises Failed."""
        self._preprocessed = preprocessed
        self.prompt_tokens = int(preprocessed["REQUEST_INPUT_LEN"][0, 0])
        self._ends = Ends(
            max_tokens=int(preprocessed["REQUEST_OUTPUT_LEN"][0, 0]),
            end_id=int(preprocessed["OUT_END_ID"][0, 0]),
            stop_ids=word_list(preprocessed["STOP_WORDS_IDS"][0]),
            stop_words=self._stop_words(),
            min_tokens=self._value("min_tokens", 0),
        )
        if self._value("stream", False):
            yield from self._stream()
        elif any(self._stop_words()) and self._value("beam_width", 1) == 1:
            yield from last_marked(self._collected())
        else:
            yield from last_marked(self._whole())

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of the prompt."""
        ids: list[int] = self._preprocessed["INPUT_ID"][0][: self.prompt_tokens].tolist()
        return ids

    def leave(self) -> None:
        """Stop reading from tensorrt_llm, from any thread. Triton then cancels the request there."""
        self._is_left = True
        if self._stream_of_events:
            self._stream_of_events.close()

    def _stream(self) -> Iterator[tuple[list[Any], bool]]:
        """Yield an event for each token, until every answer has ended."""
        for event in self._generate(streaming=True):
            answer, (ids, *_) = self._answer(event), rows_of_tokens(event)
            if answer.ended or not ids:
                continue
            before = len(answer.ids)
            text = answer.push(ids)
            self.output_tokens += len(answer.ids) - before
            yield self._outputs.tensors(event, [text]), self._all_ended()
            self._leave_if_ended_by_text()
        # The request was stopped: send the rest of an incomplete character.
        rest = "".join(answer.flush() for answer in self._answers.values() if not answer.ended)
        if rest:
            yield self._outputs.tensors({}, [rest]), True

    def _whole(self) -> Iterator[list[Any]]:
        """Yield a response for each whole answer of tensorrt_llm."""
        for event in self._generate(streaming=False):
            rows = rows_of_tokens(event)
            self.output_tokens += len(rows[0]) - len(self._echo())
            yield self._outputs.tensors(event, list(map(self._detokenizer.decode, rows)))

    def _collected(self) -> Iterator[list[Any]]:
        """Yield whole answers that a stop word in the text may end. They are read token by token, if possible."""
        events: dict[Answer, list[Event]] = {}
        for event in self._generate(streaming=self._decoupled, exclude_input_in_output=True):
            answer, (ids, *_) = self._answer(event), rows_of_tokens(event)
            if not answer.ended and ids:
                answer.push(ids)
                events.setdefault(answer, []).append(event)
                self._leave_if_ended_by_text()
        for answer, parts in events.items():
            text = self._detokenizer.decode(self._echo() + answer.ids)
            self.output_tokens += len(answer.ids)
            yield self._outputs.tensors(joined(parts, len(answer.ids)), [text])

    def _generate(self, streaming: bool, **other: Any) -> Iterable[Event]:
        """The events of tensorrt_llm. `other` inputs replace the client's. No events after `leave`."""
        inputs = {**self._inputs, **{name: np.array([[value]]) for name, value in other.items()}}
        stream = self._inner.generate(inputs, self._preprocessed, self.id, streaming)
        self._stream_of_events = stream
        return () if self._is_left else stream

    def _answer(self, event: Event) -> Answer:
        """The answer that an event belongs to. tensorrt_llm numbers them only if a request has several."""
        sequence: int = event.get("sequence_index", (0,))[0]
        if sequence not in self._answers:
            self._answers[sequence] = Answer(self._detokenizer.stream(), self._ends)
        return self._answers[sequence]

    def _all_ended(self) -> bool:
        ended = sum(answer.ended for answer in self._answers.values())
        return bool(ended == self._value("num_return_sequences", 1))

    def _leave_if_ended_by_text(self) -> None:
        """Stop reading if all answers have ended, because tensorrt_llm does not see stop words in the text."""
        if self._all_ended() and any(answer.ended_by_text for answer in self._answers.values()):
            self.leave()

    def _stop_words(self) -> list[str]:
        return [word.decode("utf-8") for word in self._inputs.get("stop_words", NO_WORDS)[0]]

    def _echo(self) -> list[int]:
        """The prompt's ids, if the client wants them before the answer."""
        if self._value("exclude_input_in_output", True):
            return []
        return self.prompt_ids

    def _value(self, name: str, default: Any) -> Any:
        array = self._inputs.get(name)
        return default if array is None or not array.size else array.flat[0].item()


def last_marked(responses: Iterable[list[Any]]) -> Iterator[tuple[list[Any], bool]]:
    """Yield (response, whether it is the last) for each response."""
    kept = list(responses)
    return ((response, response is kept[-1]) for response in kept)


def word_list(rows: NDArray[Any]) -> list[list[int]]:
    """The words in an INT32 [2, n] list: ids in the first row, where each word ends in the second."""
    ids, ends = rows.tolist()
    ends = [end for end in ends if end >= 0]
    return [ids[start:end] for start, end in pairwise([0, *ends])]
