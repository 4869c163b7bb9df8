"""A `tensorrt_llm` for tests that answers with the tokens of the prompt, then the end token.

It keeps the contract of the real one (a response a token, FINAL on the last, end_id, stop words, stop
requests, counts) and has knobs in inputs that mean nothing to an echo:
    frequency_penalty   seconds between tokens
    presence_penalty    fail after this many tokens
    runtime_top_k       below 0 refused, as by the real one; 503: no room
Each finished request appends a line to the file in the parameter `record`: its id, the number of tokens
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
        self.record = Path(config["parameters"]["record"]["string_value"])
        self.running = {}
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            asked = Asked(request)
            sender = request.get_response_sender()
            if asked.stop:
                with self.lock:
                    for stopped in self.running.get(asked.id, []):
                        stopped.set()
                sender.send(pb_utils.InferenceResponse([]), flags=FINAL)
            elif asked.top_k == 503:
                error = pb_utils.TritonError(
                    "the queue is full, please try again later", pb_utils.TritonError.UNAVAILABLE
                )
                sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            elif asked.top_k < 0:
                error = pb_utils.TritonError(
                    f"runtime_top_k: {asked.top_k}, expected 0 or more", pb_utils.TritonError.INVALID_ARG
                )
                sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            else:
                stopped = threading.Event()
                with self.lock:
                    self.running.setdefault(asked.id, []).append(stopped)
                threading.Thread(target=self.answer, args=(asked, sender, stopped), daemon=True).start()

    def answer(self, asked, sender, stopped):
        texts = [asked.tokens(sequence) for sequence in range(asked.sequences)]
        given = 0
        if not asked.streaming:
            for sequence, ids in enumerate(texts):
                whole = ids if asked.exclude_input else asked.prompt + ids
                sender.send(asked.response(whole, sequence, len(ids)), flags=FINAL * (sequence == asked.sequences - 1))
            given = sum(map(len, texts))
        else:
            steps = max(map(len, texts))
            for step in range(steps):
                time.sleep(asked.delay)
                if stopped.is_set():
                    sender.send(pb_utils.InferenceResponse([]), flags=FINAL)
                    break
                if asked.fails_after and given >= asked.fails_after:
                    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("the engine broke")), flags=FINAL)
                    break
                left = [n for n, ids in enumerate(texts) if step < len(ids)]
                for n in left:
                    last = step == steps - 1 and n == left[-1]
                    sender.send(asked.response([texts[n][step]], n, step + 1), flags=FINAL * last)
                    given += 1
        with self.lock:
            self.running[asked.id].remove(stopped)
            with self.record.open("a") as file:
                print(json.dumps({"id": asked.id, "tokens": given, "stopped": stopped.is_set()}), file=file)


class Asked:
    def __init__(self, request):
        def one(name, default):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return default if tensor is None else tensor.as_numpy().reshape(-1)[0].item()

        def row(name):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return [] if tensor is None else tensor.as_numpy()[0].tolist()

        self.id = request.request_id()
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
        self.prompt = row("input_ids")[: one("input_lengths", 0)]
        self.stop_words = words(row("stop_words_list"))
        self.bias = row("embedding_bias")

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

    def response(self, ids, sequence, count):
        tensors = {"output_ids": np.array([[ids]], np.int32), "sequence_length": np.array([[len(ids)]], np.int32)}
        if self.sequences > 1:
            tensors["sequence_index"] = np.array([[sequence]], np.int32)
        if self.log_probs:
            tensors["output_log_probs"] = np.full((1, 1, len(ids)), -0.5, np.float32)
            tensors["cum_log_probs"] = np.array([[-0.5 * count]], np.float32)
        if self.counts:
            tensors["num_output_tokens"] = np.array([[len(ids)]], np.int32)
        if self.perf:
            tensors["first_token_time_ns"] = np.array([[123456789]], np.int64)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])


def words(rows):
    """The words of a [2, n] list: ids, and where each word ends."""
    if not rows:
        return []
    ids, ends = rows
    ends = [end for end in ends if end >= 0]
    return [ids[start:end] for start, end in pairwise([0, *ends])]
