"""One request of tensorrt_llm_bls, from its inputs to its events."""

import uuid

import numpy as np
import triton_python_backend_utils as pb_utils
from answer import Answer, Ends
from inner import Failed, refused

TOKENS = ("output_ids", "sequence_length")
JOINED = {"output_log_probs": 2, "generation_logits": 2}  # outputs with a token axis, and which it is


class Conversation:
    """A request under way. Made inside `execute`, which the request's tensors do not outlive; `events` runs later."""

    def __init__(self, request, inner, detokenizer):
        self._inner, self._detokenizer = inner, detokenizer
        self._inputs = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        self.id = request.request_id() or uuid.uuid4().hex
        self._streaming = self._value("stream", False)
        if self._value("stop", False) and not request.request_id():
            raise refused("stop: the request has no id, expected the id of the request to stop")
        if self._streaming and self._value("beam_width", 1) > 1:
            raise refused(f"beam_width: {self._value('beam_width', 1)} cannot be streamed, expected 1")

    def stop(self):
        """Make tensorrt_llm end this request early."""
        try:
            self._inner.stop(self.id)
        except Failed as failure:
            pb_utils.Logger.log_warn(f"request {self.id} could not be stopped: {failure}")

    def events(self):
        """Yields (output Tensors, whether these are the last). Raises Failed."""
        if self._value("stop", False):
            self._inner.stop(self.id)
            return iter([([text_tensor([""])], True)])
        self._preprocessed = self._inner.preprocess(self._inputs)
        if self._streaming:
            return self._stream()
        return last_marked(self._collect() if self._searches_text() else self._whole())

    def _stream(self):
        """An event for each token, until every answer has ended."""
        answers = self._new_answers()
        ended = False
        for outputs in self._generate(streaming=True):
            answer, ids = self._answer(answers, outputs), tokens(outputs)
            if answer.ended or not ids:
                continue
            text = answer.push(ids)
            ended = all(answer.ended for answer in answers.values())
            yield [text_tensor([text]), *others(outputs)], ended
            if ended and any(answer.ended_by_text for answer in answers.values()):
                self.stop()
        # Stopped before its time: what is left of a character is still owed.
        rest = "".join(answer.flush() for answer in answers.values() if not answer.ended)
        if rest and not ended:
            yield [text_tensor([rest])], True

    def _whole(self):
        """Answers as tensorrt_llm gives them, a response for each."""
        for outputs in self._generate(streaming=False):
            rows, lengths = outputs["output_ids"].as_numpy()[0], outputs["sequence_length"].as_numpy()[0]
            texts = [self._detokenizer.decode(ids[:length].tolist()) for ids, length in zip(rows, lengths)]
            yield [text_tensor(texts), *others(outputs)]

    def _collect(self):
        """Whole answers, but read token by token, so that a stop word in the text can end them."""
        answers = self._new_answers()
        parts = {answer: [] for answer in answers.values()}
        for outputs in self._generate(streaming=True):
            answer, ids = self._answer(answers, outputs), tokens(outputs)
            if answer.ended:
                continue
            answer.push(ids)
            parts[answer].append({tensor.name(): tensor.as_numpy().copy() for tensor in others(outputs)})
            if answer.ended_by_text and all(answer.ended for answer in answers.values()):
                self.stop()
        for (row, _), answer in answers.items():
            text = self._detokenizer.decode(self._echo(row) + answer.ids)
            yield [text_tensor([text]), *joined(parts[answer], len(answer.ids))]

    def _generate(self, streaming):
        return self._inner.generate(self._inputs, self._preprocessed, self.id, streaming)

    def _new_answers(self):
        """An Answer for each (prompt, sequence) of the request."""
        min_tokens, sequences = self._value("min_tokens", 0), self._value("num_return_sequences", 1)
        answers = {}
        for row in range(len(self._inputs["text_input"])):
            ends = Ends(
                max_tokens=int(self._preprocessed["REQUEST_OUTPUT_LEN"][row, 0]),
                end_id=int(self._preprocessed["OUT_END_ID"][row, 0]),
                stop_ids=word_list(self._preprocessed["STOP_WORDS_IDS"][row]),
                stop_words=self._stop_words(row),
                min_tokens=min_tokens,
            )
            answers |= {(row, n): Answer(self._detokenizer.stream(), ends) for n in range(sequences)}
        return answers

    def _answer(self, answers, outputs):
        return answers[index(outputs, "batch_index"), index(outputs, "sequence_index")]

    def _stop_words(self, row):
        words = self._inputs.get("stop_words")
        return [] if words is None else [word.decode("utf-8") for word in words[row]]

    def _searches_text(self):
        rows = range(len(self._inputs["text_input"]))
        return self._value("beam_width", 1) == 1 and any(any(self._stop_words(row)) for row in rows)

    def _echo(self, row):
        """The prompt's ids where the client wants them before the answer."""
        if self._value("exclude_input_in_output", True):
            return []
        return self._preprocessed["INPUT_ID"][row, : self._preprocessed["REQUEST_INPUT_LEN"][row, 0]].tolist()

    def _value(self, name, default):
        array = self._inputs.get(name)
        return default if array is None or not array.size else array.reshape(-1)[0].item()


def last_marked(responses):
    """(response, whether it is the last) for each."""
    previous = None
    for response in responses:
        if previous is not None:
            yield previous, False
        previous = response
    if previous is not None:
        yield previous, True


def tokens(outputs):
    """The ids of the first sequence of a response."""
    length = outputs["sequence_length"].as_numpy().reshape(-1)[0]
    return outputs["output_ids"].as_numpy().reshape(-1)[:length].tolist()


def others(outputs):
    """Everything but the tokens: what tensorrt_llm says about them passes through."""
    return [tensor for name, tensor in outputs.items() if name not in TOKENS]


def index(outputs, name):
    """batch_index or sequence_index: there only when a request has several."""
    tensor = outputs.get(name)
    return 0 if tensor is None else int(tensor.as_numpy().reshape(-1)[0])


def joined(parts, count):
    """The outputs of the responses of one answer of `count` tokens as those of a single response."""
    values = {name: value for part in parts for name, value in part.items()}
    for name, axis in JOINED.items():
        if name in values:
            values[name] = np.concatenate([part[name] for part in parts if name in part], axis=axis)
    if "num_output_tokens" in values:
        values["num_output_tokens"] = np.full_like(values["num_output_tokens"], count)
    return [pb_utils.Tensor(name, value) for name, value in values.items()]


def word_list(rows):
    """The words in an INT32 [2, n] list: ids in the first row, where each word ends in the second."""
    ids, ends = rows.tolist()
    ends = [end for end in ends if end >= 0]
    return [ids[start:end] for start, end in zip([0, *ends], ends)]


def text_tensor(texts):
    return pb_utils.Tensor("text_output", np.array([[text.encode("utf-8") for text in texts]], object))
