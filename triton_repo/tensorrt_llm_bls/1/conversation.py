"""One request of tensorrt_llm_bls, from its inputs to its events."""

from itertools import pairwise

import numpy as np
import triton_python_backend_utils as pb_utils
from answer import Answer, Ends
from outputs import joined, rows_of_tokens
from server_stream import Failed

NO_WORDS = np.empty((1, 0), object)


class Conversation:
    """A request under way. Made inside `execute`, which the request's tensors do not outlive; `events` runs later."""

    def __init__(self, request, inner, outputs, detokenizer):
        self._inner, self._outputs, self._detokenizer = inner, outputs, detokenizer
        self._inputs = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        self._preprocessed, self._answers = {}, {}
        self.id = request.request_id()
        self.is_stop_request = self._value("stop", False)
        if self.is_stop_request and not self.id:
            raise Failed("stop: the request has no id, expected the id of the request to stop")
        if self._value("stream", False) and self._value("beam_width", 1) > 1:
            raise Failed(f"beam_width: {self._value('beam_width', 1)} cannot be streamed, expected 1")

    def events(self):
        """Yields (output tensors, whether these are the last). Raises Failed."""
        if self.is_stop_request:
            self._inner.stop(self.id)
            yield self._outputs.tensors({}, [""]), True
            return
        self._preprocessed = self._inner.preprocess(self._inputs)
        if self._value("stream", False):
            yield from self._stream()
        elif any(self._stop_words()) and self._value("beam_width", 1) == 1:
            yield from last_marked(self._collected())
        else:
            yield from last_marked(self._whole())

    def stop(self):
        """Make tensorrt_llm end this request early."""
        try:
            self._inner.stop(self.id)
        except Failed as failure:
            pb_utils.Logger.log_warn(f"request {self.id} could not be stopped: {failure}")

    def _stream(self):
        """An event for each token, until every answer has ended."""
        for event in self._generate(streaming=True):
            answer, (ids, *_) = self._answer(event), rows_of_tokens(event)
            if answer.ended or not ids:
                continue
            text = answer.push(ids)
            yield self._outputs.tensors(event, [text]), self._all_ended()
            self._stop_if_ended_by_text()
        # Stopped before its time: what is left of a character is still owed.
        rest = "".join(answer.flush() for answer in self._answers.values() if not answer.ended)
        if rest:
            yield self._outputs.tensors({}, [rest]), True

    def _whole(self):
        """Answers as tensorrt_llm gives them, a response for each."""
        for event in self._generate(streaming=False):
            yield self._outputs.tensors(event, list(map(self._detokenizer.decode, rows_of_tokens(event))))

    def _collected(self):
        """Whole answers, but read token by token, so that a stop word in the text can end them."""
        events = {}
        for event in self._generate(streaming=True):
            answer, (ids, *_) = self._answer(event), rows_of_tokens(event)
            if not answer.ended and ids:
                answer.push(ids)
                events.setdefault(answer, []).append(event)
                self._stop_if_ended_by_text()
        for answer, parts in events.items():
            text = self._detokenizer.decode(self._echo() + answer.ids)
            yield self._outputs.tensors(joined(parts, len(answer.ids)), [text])

    def _generate(self, streaming):
        self._ends = Ends(
            max_tokens=int(self._preprocessed["REQUEST_OUTPUT_LEN"][0, 0]),
            end_id=int(self._preprocessed["OUT_END_ID"][0, 0]),
            stop_ids=word_list(self._preprocessed["STOP_WORDS_IDS"][0]),
            stop_words=self._stop_words(),
            min_tokens=self._value("min_tokens", 0),
        )
        return self._inner.generate(self._inputs, self._preprocessed, self.id, streaming)

    def _answer(self, event):
        """The answer that an event belongs to; tensorrt_llm says which only when a request has several."""
        sequence = event.get("sequence_index", (0,))[0]
        if sequence not in self._answers:
            self._answers[sequence] = Answer(self._detokenizer.stream(), self._ends)
        return self._answers[sequence]

    def _all_ended(self):
        ended = sum(answer.ended for answer in self._answers.values())
        return ended == self._value("num_return_sequences", 1)

    def _stop_if_ended_by_text(self):
        """tensorrt_llm does not know of an end that only the text shows."""
        if self._all_ended() and any(answer.ended_by_text for answer in self._answers.values()):
            self.stop()

    def _stop_words(self):
        return [word.decode("utf-8") for word in self._inputs.get("stop_words", NO_WORDS)[0]]

    def _echo(self):
        """The prompt's ids where the client wants them before the answer."""
        if self._value("exclude_input_in_output", True):
            return []
        return self._preprocessed["INPUT_ID"][0].tolist()

    def _value(self, name, default):
        array = self._inputs.get(name)
        return default if array is None or not array.size else array.flat[0].item()


def last_marked(responses):
    """(response, whether it is the last) for each."""
    kept = list(responses)
    return ((response, response is kept[-1]) for response in kept)


def word_list(rows):
    """The words in an INT32 [2, n] list: ids in the first row, where each word ends in the second."""
    ids, ends = rows.tolist()
    ends = [end for end in ends if end >= 0]
    return [ids[start:end] for start, end in pairwise([0, *ends])]
