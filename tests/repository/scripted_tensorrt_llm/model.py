"""A `tensorrt_llm` for tests that answers with the tokens of the prompt, then the end token.

It keeps the contract of the real one (a response a token, FINAL on the last, end_id, stop words, stop requests, clients
that go away, counts, batches [N, L]) and has knobs in inputs that mean nothing to an echo:
    frequency_penalty   seconds between tokens; before a whole answer, too
    presence_penalty    fail after this many tokens
    runtime_top_k       below 0 refused, as by the real one; 503: no room
Each finished text appends a line to the file in the parameter `record`: its request's id, the number of tokens
that it gave, and whether it was stopped.
"""

import json
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from server_process import end_with_server

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        end_with_server()
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.record = Path(config["parameters"]["record"]["string_value"])
        self.running = {}
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            batch = Batch(request)
            sender = request.get_response_sender()
            refusal = batch.refusal(self.decoupled)
            if batch.texts[0].stop:
                with self.lock:
                    for stopped in self.running.get(batch.id, []):
                        stopped.set()
                sender.send(pb_utils.InferenceResponse([]), flags=FINAL)
            elif refusal:
                sender.send(pb_utils.InferenceResponse(error=refusal), flags=FINAL)
            else:
                stopped = threading.Event()
                with self.lock:
                    self.running.setdefault(batch.id, []).append(stopped)
                threading.Thread(target=self.answer, args=(batch, sender, stopped), daemon=True).start()

    def answer(self, batch, sender, stopped):
        """Send the responses; all but the last that there is say that more follows."""
        given = [0] * len(batch.texts)
        waiting = None
        for row, response in batch.responses():
            time.sleep(batch.texts[0].delay)
            if waiting is not None:
                sender.send(waiting)
                waiting = None
            if sender.is_cancelled():
                stopped.set()
            if stopped.is_set():
                waiting = pb_utils.InferenceResponse([])
                break
            if batch.texts[0].fails_after and sum(given) >= batch.texts[0].fails_after:
                time.sleep(batch.texts[0].delay)  # the last token has only just been sent
                waiting = pb_utils.InferenceResponse(error=pb_utils.TritonError("the engine broke"))
                break
            waiting = response
            given[row] += 1
        sender.send(waiting, flags=FINAL)
        with self.lock:
            self.running[batch.id].remove(stopped)
            with self.record.open("a") as file:
                for text, count in zip(batch.texts, given, strict=True):
                    tokens = count if text.streaming else sum(map(len, text.answers())) * (count > 0)
                    print(json.dumps({"id": batch.id, "tokens": tokens, "stopped": stopped.is_set()}), file=file)


class Batch:
    """The texts of a request [N, L]."""

    def __init__(self, request):
        self.id = request.request_id()
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self.texts = [Text(tensors, row) for row in range(len(tensors["input_lengths"]))]

    def refusal(self, decoupled):
        text = self.texts[0]
        if text.top_k == 503:
            return pb_utils.TritonError("the queue is full, please try again later", pb_utils.TritonError.UNAVAILABLE)
        if text.top_k < 0:
            message = f"runtime_top_k: {text.top_k}, expected 0 or more"
            return pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
        if not decoupled and (text.streaming or len(self.texts) > 1):
            return pb_utils.TritonError("Streaming is only supported if model is deployed using decoupled mode.")
        return None

    def responses(self):
        """(row, response) of all texts, a token of each in turn where they are streamed."""
        if not self.texts[0].streaming:
            for row, text in enumerate(self.texts):
                for sequence, ids in enumerate(text.answers()):
                    whole = ids if text.exclude_input else text.prompt + ids
                    yield row, self.response(row, whole, sequence, len(ids))
            return
        answers = [(row, n, ids) for row, text in enumerate(self.texts) for n, ids in enumerate(text.answers())]
        for step in range(max(len(ids) for _, _, ids in answers)):
            for row, sequence, ids in answers:
                if step < len(ids):
                    yield row, self.response(row, [ids[step]], sequence, step + 1)

    def response(self, row, ids, sequence, count):
        text = self.texts[row]
        tensors = {"output_ids": np.array([[ids]], np.int32), "sequence_length": np.array([[len(ids)]], np.int32)}
        if len(self.texts) > 1:
            tensors["batch_index"] = np.array([[row]], np.int32)
        if text.sequences > 1:
            tensors["sequence_index"] = np.array([[sequence]], np.int32)
        if text.log_probs:
            tensors["output_log_probs"] = np.full((1, 1, count), -0.5, np.float32)
            tensors["cum_log_probs"] = np.array([[-0.5 * count]], np.float32)
        if text.counts:
            tensors["num_output_tokens"] = np.array([[len(ids)]], np.int32)
        if text.perf:
            tensors |= {name: np.array([[value]], kind) for name, (kind, value) in PERFORMANCE.items()}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])


BLOCKS = ("alloc_new", "reused", "alloc_total")
TIMES = ("arrival", "first_scheduled", "first_token", "last_token")
PERFORMANCE = {
    **{f"kv_cache_{name}_blocks": (np.int32, 3) for name in BLOCKS},
    **{f"{name}_time_ns": (np.int64, 123456789) for name in TIMES},
    "acceptance_rate": (np.float32, 0.0),
    "total_accepted_draft_tokens": (np.int32, 0),
    "total_draft_tokens": (np.int32, 0),
}


class Text:
    """One row of a request's tensors."""

    def __init__(self, tensors, row):
        def one(name, default):
            return tensors[name].reshape(len(tensors[name]), -1)[row, 0].item() if name in tensors else default

        def many(name):
            return tensors[name][row].tolist() if name in tensors else []

        self.stop = one("stop", False)
        self.streaming = one("streaming", False)
        self.top_k = one("runtime_top_k", 0)
        self.delay = one("frequency_penalty", 0.0)
        self.fails_after = one("presence_penalty", 0.0)
        self.sequences = one("num_return_sequences", 1)
        self.end_id = one("end_id", -1)
        self.min_tokens = one("min_tokens", 0)
        self.max_tokens = one("request_output_len", 1)
        self.exclude_input = one("exclude_input_in_output", True)
        self.log_probs = one("return_log_probs", False)
        self.counts = one("return_num_output_tokens", False)
        self.perf = one("return_perf_metrics", False)
        self.prompt = many("input_ids")[: one("input_lengths", 0)]
        self.stop_words = words(many("stop_words_list"))

    def answers(self):
        return [self.tokens(sequence) for sequence in range(self.sequences)]

    def tokens(self, sequence):
        """The prompt without its first token (BOS), rotated by `sequence`, as far as the contract lets it go."""
        text = self.prompt[1:]
        text = text[sequence:] + text[:sequence] + [self.end_id] * (self.end_id >= 0)
        given = []
        for id in text[: self.max_tokens]:
            given.append(id)
            ended = any(
                given[-len(word) :] == word and (len(word) == 1 or len(given) >= self.min_tokens)
                for word in self.stop_words
            )
            if ended or id == self.end_id:
                break
        return given


def words(rows):
    """The words of a [2, n] list: ids, and where each word ends."""
    if not rows:
        return []
    ids, ends = rows
    ends = [end for end in ends if end >= 0]
    return [ids[start:end] for start, end in pairwise([0, *ends])]
