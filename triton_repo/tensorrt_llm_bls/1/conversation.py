"""One request of tensorrt_llm_bls, from its inputs to its events."""

import uuid
from itertools import pairwise

import numpy as np
import triton_python_backend_utils as pb_utils
from answer import Answer, Ends
from inner import Failed, refused

TOKENS = ("output_ids", "sequence_length")
TOKEN_AXIS = {"output_log_probs": 2, "generation_logits": 2}  # outputs that have an entry for each token


class Conversation:
    """The inputs of a request as arrays [1, ...] by name, and what becomes of them. Raises Failed."""

    def __init__(self, request, inner, detokenizer):
        self._inner, self._detokenizer = inner, detokenizer
        self._inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self._preprocessed = {}
        self._responses, self._answers = iter(()), []
        self.id = request.request_id() or uuid.uuid4().hex
        if self._value("stop", False) and not request.request_id():
            raise refused("stop: the request has no id, expected the id of the request to stop")
        if self._value("stream", False) and self._value("beam_width", 1) > 1:
            raise refused(f"beam_width: {self._value('beam_width', 1)} cannot be streamed, expected 1")

    def events(self):
        """Yields (output Tensors, whether these are the last). Raises Failed."""
        if self._value("stop", False):
            self._inner.stop(self.id)
            yield [text_tensor([""])], True
            return
        self._preprocessed = self._inner.preprocess(self._inputs)
        if self._value("stream", False):
            yield from self._stream()
        elif any(self._stop_words()) and self._value("beam_width", 1) == 1:
            yield from self._collected()
        else:
            yield from self._whole()

    def stop(self):
        """Make tensorrt_llm end this request early."""
        try:
            self._inner.stop(self.id)
        except Failed as failure:
            pb_utils.Logger.log_warn(f"request {self.id} could not be stopped: {failure}")

    def finish(self):
        """After the last event: see tensorrt_llm's request to its end, stopping it where only the text ended."""
        if any(answer.ended_by_text for answer in self._answers):
            self.stop()
        try:
            for _ in self._responses:
                pass
        except Failed as failure:
            pb_utils.Logger.log_warn(f"request {self.id} failed after its last token: {failure}")

    def _stream(self):
        """An event for each token, until every answer has ended."""
        answers = self._begin(streaming=True)
        for outputs in self._responses:
            answer, ids = answers[sequence_index(outputs)], tokens(outputs)
            if answer.ended or not ids:
                continue
            text = answer.push(ids)
            yield [text_tensor([text]), *others(outputs)], all(answer.ended for answer in answers)
        # Stopped before its time: what is left of a character is still owed.
        rest = "".join(answer.flush() for answer in answers if not answer.ended)
        if rest:
            yield [text_tensor([rest])], True

    def _whole(self):
        """Answers as tensorrt_llm gives them, a response for each."""
        self._begin(streaming=False)
        responses = []
        for outputs in self._responses:
            rows, lengths = outputs["output_ids"].as_numpy()[0], outputs["sequence_length"].as_numpy()[0]
            texts = [self._detokenizer.decode(ids[:length].tolist()) for ids, length in zip(rows, lengths, strict=True)]
            responses.append([text_tensor(texts), *others(outputs)])
        yield from last_marked(responses)

    def _collected(self):
        """Whole answers, but read token by token, so that a stop word in the text can end them."""
        answers = self._begin(streaming=True)
        parts = [[] for _ in answers]
        for outputs in self._responses:
            sequence, ids = sequence_index(outputs), tokens(outputs)
            if not answers[sequence].ended and ids:
                answers[sequence].push(ids)
                parts[sequence].append(others(outputs))
            if all(answer.ended for answer in answers):
                break
        responses = []
        for answer, outputs in zip(answers, parts, strict=True):
            text = self._detokenizer.decode(self._echo() + answer.ids)
            responses.append([text_tensor([text]), *joined(outputs, len(answer.ids))])
        yield from last_marked(responses)

    def _begin(self, streaming):
        """Ask tensorrt_llm; an Answer for each sequence of the request."""
        self._responses = self._inner.generate(self._inputs, self._preprocessed, self.id, streaming)
        ends = Ends(
            max_tokens=int(self._preprocessed["REQUEST_OUTPUT_LEN"][0, 0]),
            end_id=int(self._preprocessed["OUT_END_ID"][0, 0]),
            stop_ids=word_list(self._preprocessed["STOP_WORDS_IDS"][0]),
            stop_words=self._stop_words(),
            min_tokens=self._value("min_tokens", 0),
        )
        sequences = self._value("num_return_sequences", 1)
        self._answers = [Answer(self._detokenizer.stream(), ends) for _ in range(sequences)]
        return self._answers

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


NO_WORDS = np.empty((1, 0), object)


def last_marked(responses):
    """(response, whether it is the last) for each."""
    return ((response, response is responses[-1]) for response in responses)


def tokens(outputs):
    """The ids of the first sequence of a response."""
    length = outputs["sequence_length"].as_numpy().flat[0]
    return outputs["output_ids"].as_numpy().reshape(-1)[:length].tolist()


def others(outputs):
    """Everything but the tokens: what tensorrt_llm says about them passes through."""
    return [tensor for name, tensor in outputs.items() if name not in TOKENS]


def sequence_index(outputs):
    """Which answer a response belongs to; tensorrt_llm says so only when a request has several."""
    tensor = outputs.get("sequence_index")
    return 0 if tensor is None else int(tensor.as_numpy().flat[0])


def joined(responses, count):
    """The outputs of the responses of one answer of `count` tokens as those of a single response."""
    named = [{tensor.name(): tensor.as_numpy() for tensor in tensors} for tensors in responses]
    values = {name: value for tensors in named for name, value in tensors.items()}
    for name in TOKEN_AXIS.keys() & values.keys():
        values[name] = np.concatenate([tensors[name] for tensors in named], axis=TOKEN_AXIS[name])
    if "num_output_tokens" in values:
        values["num_output_tokens"] = np.full_like(values["num_output_tokens"], count)
    return [pb_utils.Tensor(name, value) for name, value in values.items()]


def word_list(rows):
    """The words in an INT32 [2, n] list: ids in the first row, where each word ends in the second."""
    ids, ends = rows.tolist()
    ends = [end for end in ends if end >= 0]
    return [ids[start:end] for start, end in pairwise([0, *ends])]


def text_tensor(texts):
    return pb_utils.Tensor("text_output", np.array([[text.encode("utf-8") for text in texts]], object))
