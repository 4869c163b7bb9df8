"""The generated repository in a real Triton: what clients see of tensorrt_llm_bls and of the ensemble.

The engine echoes the prompt token by token (scripted_tensorrt_llm), so the tokenizers library alone says
what each answer must be.
"""

import http.client
import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from tests.load.measure import measure_whole
from toolkit.client import GenerateRequest, connect
from toolkit.load.exchange import ASKED_OF_THE_SERVER, now
from toolkit.repository.configs import PREPROCESSING_INSTANCES

from .conftest import scripted_repository, serving

pytestmark = pytest.mark.slow

BLS, ENSEMBLE = "tensorrt_llm_bls", "ensemble"
BOTH = pytest.mark.parametrize("model", [BLS, ENSEMBLE])
TEXTS = ("Hello world.", " leading space", "naïve 日本語 😀👩‍👩‍👧 \N{REPLACEMENT CHARACTER} ok", "trailing 😀")


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def texts_of(events: list[dict]) -> list[str]:
    return [event["text_output"] for event in events]


@BOTH
@pytest.mark.parametrize("text", TEXTS)
def test_whole_answer(server, model, text):
    status, body = server.post(model, {"text_input": text, "max_tokens": 400})
    assert status == 200
    assert json.loads(body)["text_output"] == text


@BOTH
@pytest.mark.parametrize("text", TEXTS)
def test_stream_is_exact_and_has_an_event_a_token(server, tokenizer, model, text):
    ids = ids_of(tokenizer, text)
    events = server.events(model, {"text_input": text, "max_tokens": 400, "id": "exact"})
    assert "".join(texts_of(events)) == text
    assert len(events) == len(ids) + 1  # the end token is an event too
    assert all(event["id"] == "exact" for event in events)


@BOTH
def test_stream_cut_inside_a_character(server, tokenizer, model):
    ids = ids_of(tokenizer, "é😀")
    for tokens in range(1, len(ids) + 1):
        events = server.events(model, {"text_input": "é😀", "max_tokens": tokens, "id": f"cut{tokens}"})
        assert len(events) == tokens
        assert "".join(texts_of(events)) == tokenizer.decode(ids[:tokens])


def test_stream_without_an_id_is_exact_too(server):
    assert "".join(texts_of(server.events(BLS, {"text_input": "日本語 😀", "max_tokens": 400}))) == "日本語 😀"


@BOTH
def test_inputs_nested_in_parameters(server, model):
    body = {"id": "42", "text_input": "Hello world.", "parameters": {"max_tokens": 3, "stream": True, "top_k": 1}}
    status, text = server.post(model, body, stream=True)
    assert status == 200 and text.count('"text_output"') == 3


@BOTH
def test_text_input_may_be_anything_that_curl_sends(server, model):
    for words in ("", [], ["", ""]):
        body = {"text_input": "Hello world.", "max_tokens": 60, "bad_words": words, "stop_words": words}
        status, text = server.post(model, body)
        assert status == 200 and json.loads(text)["text_output"] == "Hello world."


@BOTH
def test_a_used_id_starts_afresh(server, model):
    """The first request breaks off inside a character; nothing of it may show in the second."""
    break_off(server, model, 2, {"text_input": "😀😀", "max_tokens": 9, "id": "again"})
    assert "".join(texts_of(server.events(model, {"text_input": "é!", "max_tokens": 9, "id": "again"}))) == "é!"


def break_off(server, model: str, tokens: int, body: dict) -> None:
    """Ask for a stream whose engine breaks after these tokens, all of which are seen.

    When one of its models fails, an ensemble drops what is still on its way through the others, on a busy machine even
    the first token, which makes the answer an error and no stream. So the engine takes longer and longer over it.
    """
    for delay_s in (0.0, 0.1, 1.0, 5.0):
        knobs = {"stream": True, "presence_penalty": tokens, "frequency_penalty": delay_s}
        status, text = server.post(model, {**body, **knobs}, stream=True)
        assert text.strip().endswith('the engine broke"}'), text
        if text.count('"text_output"') == tokens:
            assert status == 200
            return
        assert model == ENSEMBLE, text
    raise AssertionError(f"the error overtook the tokens each time: {text}")


@BOTH
def test_every_eos_id_ends_the_text(server, model):
    """generation_config.json names <|end|> and <|eot|>; an end_id of the request is the only one."""
    prompt = "Hello<|eot|> there<|end|> you"
    for extra, expected in (({}, "Hello"), ({"end_id": 1}, "Hello there"), ({"end_id": -1}, "Hello there you")):
        status, body = server.post(model, {"text_input": prompt, "max_tokens": 60, **extra})
        assert (status, json.loads(body)["text_output"]) == (200, expected)


@BOTH
def test_stop_word_of_whole_tokens(server, tokenizer, model):
    ids = ids_of(tokenizer, "one two three")
    word = tokenizer.decode(ids[2:4])
    status, body = server.post(model, {"text_input": "one two three", "max_tokens": 60, "stop_words": [word]})
    assert (status, json.loads(body)["text_output"]) == (200, tokenizer.decode(ids[:4]))


@pytest.mark.parametrize("stream", [True, False])
def test_stop_word_over_parts_of_tokens(server, tokenizer, stream):
    text = "Hello world, here we go again and again"
    ids = ids_of(tokenizer, text)
    pieces = [tokenizer.decode([id]) for id in ids]

    def straddles(place: int) -> bool:
        """Whether the end of one piece and the start of the next are seen there first, and are no whole pieces."""
        word = pieces[place][-1] + pieces[place + 1][0]
        first = text.find(word) == len("".join(pieces[: place + 1])) - 1
        return first and len(pieces[place]) > 1 and len(pieces[place + 1]) > 1

    place = next(n for n in range(2, len(ids) - 4) if straddles(n))
    word = pieces[place][-1] + pieces[place + 1][0]
    body = {"text_input": text, "max_tokens": 99, "stop_words": [word], "frequency_penalty": 0.2}
    with server.next_record() as record:
        if stream:
            answer = "".join(texts_of(server.events(BLS, body)))
        else:
            answer = json.loads(server.post(BLS, body)[1])["text_output"]
    assert answer == "".join(pieces[: place + 2])
    assert record["stopped"] and record["tokens"] < len(ids)


def test_stop_words_in_the_text_wait_for_min_tokens(server):
    body = {"text_input": "abcabcabcabc", "max_tokens": 60, "stop_words": ["bca"], "min_tokens": 6}
    answer = "".join(texts_of(server.events(BLS, body)))
    assert "abcabcabcabc".startswith(answer) and len(answer) > 4


def test_several_sequences(server, tokenizer):
    text = "Hello world, é"
    ids = ids_of(tokenizer, text)
    events = server.events(BLS, {"text_input": text, "max_tokens": 60, "num_return_sequences": 2})
    answers = ["".join(texts_of([e for e in events if e["sequence_index"] == n])) for n in (0, 1)]
    assert answers == [text, tokenizer.decode(ids[1:] + ids[:1])]


@BOTH
def test_other_outputs_pass_through(server, tokenizer, model):
    asked = {"return_log_probs": True, "return_num_output_tokens": True, "return_perf_metrics": True}
    events = server.events(model, {"text_input": "Hello world", "max_tokens": 4, "id": "outputs", **asked})
    assert [event["cum_log_probs"] for event in events] == [-0.5, -1.0, -1.5, -2.0]
    assert [event["output_log_probs"] for event in events] == [-0.5, [-0.5] * 2, [-0.5] * 3, [-0.5] * 4]
    assert all(event["first_token_time_ns"] == 123456789 for event in events)


def test_other_outputs_of_a_whole_answer_read_token_by_token(server, tokenizer):
    text, count = "Hello world", len(ids_of(tokenizer, "Hello world")) + 1
    asked = {"return_log_probs": True, "return_num_output_tokens": True, "stop_words": ["never there"]}
    answer = json.loads(server.post(BLS, {"text_input": text, "max_tokens": 60, **asked})[1])
    assert answer["text_output"] == text
    assert answer["output_log_probs"] == [-0.5] * count
    assert answer["cum_log_probs"] == -0.5 * count and answer["num_output_tokens"] == count


@BOTH
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_whole_answers_are_measured_with_their_tokens(server, tokenizer, model, protocol):
    """A decoupled model answers a request that does not stream with one response, which counts all its tokens."""
    asked = GenerateRequest("Hello world", 60, model=model, sampling=ASKED_OF_THE_SERVER)
    with connect(f"{protocol}://127.0.0.1:{getattr(server, protocol)}") as client:
        sample = measure_whole(client, asked, due=now(), protocol=protocol, deadline_s=30)
    assert (sample.error, sample.tokens_out) == (None, len(ids_of(tokenizer, "Hello world")) + 1)
    assert sample.ttft_ms is None and sample.e2e_ms > 0


@pytest.mark.parametrize("stop_words", [[], ["never there"]])
def test_prompt_before_the_answer_when_asked_for(server, stop_words):
    body = {"text_input": "Hello.", "max_tokens": 60, "exclude_input_in_output": False, "stop_words": stop_words}
    assert json.loads(server.post(BLS, body)[1])["text_output"] == "Hello.Hello."


REFUSED = (
    ({"text_input": ""}, "text_input: is empty"),
    ({"max_tokens": 0}, "max_tokens: 0, expected 1 or more"),
    ({"max_tokens": -3}, "max_tokens: -3, expected 1 or more"),
    ({"top_k": -1}, "runtime_top_k: -1"),
    ({"embedding_bias_words": ["a", "b"], "embedding_bias_weights": [1.0]}, "2 words and 1 weights"),
    ({"embedding_bias_weights": [1.0]}, "0 words and 1 weights"),
    ({"max_tokens": [1, 2]}, "batch size does not match"),
    ({"text_input": ["a", "b"]}, "batch size does not match"),
)
MISTYPED = ({"max_tokens": "many"}, {"text_input": None}, {"temperature": "hot"})


@BOTH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_refused(server, model, stream, changed, message):
    body = {"text_input": "Hello.", "max_tokens": 4, "stream": stream, **changed}
    status, text = server.post(model, body, stream)
    assert status == 400 and message in text
    assert "Traceback" not in text and len(text.strip().splitlines()) == 1
    assert server.post(model, {"text_input": "Hello.", "max_tokens": 4})[0] == 200


@pytest.mark.parametrize("name", ["temperature", "presence_penalty", "top_p", "repetition_penalty"])
@pytest.mark.parametrize("number", ["1e39", "Infinity", "NaN"])
def test_a_number_that_is_not_finite_never_reaches_the_executor(server, name, number):
    """Triton's JSON has them all, and TensorRT-LLM would end every request in flight."""
    body = '{"text_input": "Hello.", "max_tokens": 4, "NAME": NUMBER}'.replace("NAME", name).replace("NUMBER", number)
    status, text = server.post_bytes(f"http://127.0.0.1:{server.http}/v2/models/{BLS}/generate", body.encode())
    value = "nan" if number == "NaN" else "inf"
    assert (status, json.loads(text)["error"]) == (400, f"{name}: {value}, expected a finite number")


@BOTH
@pytest.mark.parametrize("changed", MISTYPED)
def test_mistyped(server, model, changed):
    """Refused by Triton's own HTTP front end, which calls it 500; no model sees it."""
    status, text = server.post(model, {"text_input": "Hello.", "max_tokens": 4, **changed})
    assert status in (400, 500) and text.startswith('{"error":"Unable to parse')
    assert server.post(model, {"text_input": "Hello.", "max_tokens": 4})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_engine_says_so(server, stream):
    """In words: Triton's generate answers 400 to every error that a model responds with."""
    status, text = server.post(BLS, {"text_input": "Hello.", "max_tokens": 4, "top_k": 503, "stream": stream}, stream)
    assert status == 400 and "try again later" in text


@BOTH
@pytest.mark.parametrize("missing", ["text_input", "max_tokens"])
def test_missing_input(server, model, missing):
    body = {"text_input": "Hello.", "max_tokens": 4}
    del body[missing]
    status, text = server.post(model, body)
    assert status == 400 and "Traceback" not in text


@BOTH
def test_invalid_utf8(server, model):
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        events = grpc_events(client, model, b"ab\xff", 4, "bytes")
        assert "text_input: byte 0xff at 2 is not UTF-8" in str(events[0][1])
    url = f"http://127.0.0.1:{server.http}/v2/models/{model}/generate"
    status, text = server.post_bytes(url, b'{"text_input": "ab\xff", "max_tokens": 4}')
    assert status == 400, text


@BOTH
def test_error_inside_a_stream(server, model):
    break_off(server, model, 3, {"text_input": "Hello world.", "max_tokens": 9, "id": "e"})


def test_images_are_refused(server):
    status, text = server.post(BLS, {"text_input": "a", "max_tokens": 4, "image_url_input": "http://127.0.0.1/"})
    assert status == 400 and "takes a text prompt only" in text


def test_beams_are_not_streamed(server):
    body = {"text_input": "a", "max_tokens": 4, "beam_width": 2, "stream": True}
    status, text = server.post(BLS, body, stream=True)
    assert status == 400 and "beam_width: 2 cannot be streamed" in text


@BOTH
def test_grpc_stream_ends_with_its_last_token(server, tokenizer, model):
    text = "Hello 😀 world"
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        events = grpc_events(client, model, text.encode(), 400, "grpc")
    assert all(error is None for _, error in events)
    outputs = [result.as_numpy("text_output") for result, _ in events]
    assert b"".join(output.flat[0] for output in outputs if output is not None).decode() == text
    final = [result.get_response().parameters["triton_final_response"].bool_param for result, _ in events]
    assert final.count(True) == 1 and final[-1]
    assert len(events) == len(ids_of(tokenizer, text)) + 1


def grpc_events(client, model: str, text: bytes, max_tokens: int, id: str) -> list[tuple]:
    """(result, error) of each event of a stream, empty final ones included."""
    events: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: events.put((result, error)))
    inputs = [
        tensor("text_input", np.array([[text]], object), "BYTES"),
        tensor("max_tokens", np.array([[max_tokens]], np.int32), "INT32"),
        tensor("stream", np.array([[True]]), "BOOL"),
    ]
    client.async_stream_infer(model, inputs, request_id=id, enable_empty_final_response=True)
    seen = []
    while True:
        result, error = events.get(timeout=30)
        seen.append((result, error))
        if error is not None or result.get_response().parameters["triton_final_response"].bool_param:
            client.stop_stream()
            return seen


def tensor(name: str, value: np.ndarray, type: str) -> grpcclient.InferInput:
    made = grpcclient.InferInput(name, list(value.shape), type)
    made.set_data_from_numpy(value)
    return made


LONG = {"text_input": "Hello world. " * 20, "max_tokens": 400, "stream": True, "frequency_penalty": 0.02}


@pytest.mark.parametrize("id", ["mine", ""])
def test_an_http_client_that_goes_away_stops_its_request(server, id):
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
    with server.next_record() as record:
        connection.request("POST", f"/v2/models/{BLS}/generate_stream", json.dumps({**LONG, "id": id}))
        connection.getresponse().readline()
        connection.close()
    assert record["stopped"] and record["tokens"] < 100
    assert record["id"] == id or (not id and record["id"])


def test_a_grpc_client_that_goes_away_stops_its_request(server):
    first: queue.Queue = queue.Queue()
    with server.next_record() as record, grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(lambda result, error: first.put(error))
        inputs = [
            tensor("text_input", np.array([[LONG["text_input"].encode()]], object), "BYTES"),
            tensor("max_tokens", np.array([[400]], np.int32), "INT32"),
            tensor("stream", np.array([[True]]), "BOOL"),
            tensor("frequency_penalty", np.array([[0.02]], np.float32), "FP32"),
        ]
        client.async_stream_infer(BLS, inputs, request_id="leaves")
        assert first.get(timeout=30) is None
        client.stop_stream(cancel_requests=True)
    assert record["id"] == "leaves" and record["stopped"] and record["tokens"] < 100


@pytest.mark.parametrize("through", [BLS, "tensorrt_llm"])
def test_stop_request(server, through):
    stop = {"id": "stop me", "stop": True, "streaming": True}
    if through == BLS:
        stop = {"id": "stop me", "stop": True, "text_input": "", "max_tokens": 1}
    else:
        stop |= {"input_ids": [1], "input_lengths": 1, "request_output_len": 1}
    answer: list[dict] = []
    begun = threading.Event()
    body = {"text_input": "Hello 😀. " * 45, "max_tokens": 400, "frequency_penalty": 0.02, "id": "stop me"}

    def read() -> None:
        for event in server.stream(BLS, body):
            answer.append(event)
            begun.set()

    running = threading.Thread(target=read)
    running.start()
    assert begun.wait(30)
    status, _ = server.post(through, stop, stream=True)
    running.join(30)
    assert status == 200 and not running.is_alive()
    assert 0 < len(answer) < 300  # of 360, which take over seven seconds
    assert ("Hello 😀. " * 45).startswith("".join(texts_of(answer)).rstrip("\N{REPLACEMENT CHARACTER}"))


def test_stop_in_one_of_two_requests_of_the_same_id(server):
    """The one that its text ends must not take the other with it."""
    text = "Hello world, here we go again and again"
    body = {"text_input": text, "max_tokens": 99, "id": "twin", "frequency_penalty": 0.01}
    answers: dict[str, str] = {}

    def ask(name: str, **extra) -> None:
        answers[name] = "".join(texts_of(server.events(BLS, {**body, **extra})))

    whole = threading.Thread(target=ask, args=("whole",))
    whole.start()
    time.sleep(0.05)  # so that it is mostly the first; what must hold does so in either order
    ask("ended", stop_words=["lo wo"])
    whole.join(30)
    assert answers["whole"] == text and answers["ended"].startswith("Hello wo") and answers["ended"] != text


def test_stop_request_without_an_id(server):
    status, text = server.post(BLS, {"stop": True, "text_input": "", "max_tokens": 1})
    assert status == 400 and "stop: the request has no id" in text


@BOTH
def test_many_streams_at_once(server, model):
    """Twice as many as run at a time: each exact, none mixed with another."""
    texts = [f"stream {n} says 😀 é {n * n}" for n in range(16)]
    answers: dict[int, str] = {}

    def ask(n: int) -> None:
        body = {"text_input": texts[n], "max_tokens": 400, "frequency_penalty": 0.002, "id": f"many{n}"}
        answers[n] = "".join(texts_of(server.events(model, body)))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert [answers.get(n) for n in range(len(texts))] == texts


def test_models_end_with_a_killed_server(tmp_path, tiny_llama):
    with serving(scripted_repository(tmp_path, tiny_llama), tmp_path) as server:
        processes = psutil.Process(server.pid).children(recursive=True)
        assert len(processes) == 3 + PREPROCESSING_INSTANCES
        psutil.Process(server.pid).kill()
        assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_streams_that_are_left_at_once_end_together(server):
    """The time until all have ended in the engine does not grow with their number: no stop waits for another.

    It is compared with streams of the engine itself, which looks whether its client is there at each token.
    """
    took = {model: seconds_until_left_streams_end(server, model, clients=40) for model in ("tensorrt_llm", BLS)}
    assert took[BLS] < 8 * max(took["tensorrt_llm"], 0.25), took


def seconds_until_left_streams_end(server, model: str, clients: int) -> float:
    """So many clients have their first event and leave at once; how long until the last of their requests ends."""
    body = {"text_input": "Hello world. " * 20, "max_tokens": 400, "stream": True}
    if model == "tensorrt_llm":
        body = {"input_ids": [1] * 300, "input_lengths": 300, "request_output_len": 400, "streaming": True}
    before, connections = len(server.records()), []
    for _ in range(clients):
        connections.append(http.client.HTTPConnection("127.0.0.1", server.http, timeout=30))
        asked = json.dumps({**body, "frequency_penalty": 0.1})
        connections[-1].request("POST", f"/v2/models/{model}/generate_stream", asked)
        connections[-1].getresponse().readline()
    start = time.monotonic()
    for connection in connections:
        connection.close()
    ended = server.records(before + clients, within_s=60)[before:]
    assert all(text["stopped"] for text in ended)
    return time.monotonic() - start


@BOTH
def test_a_huge_prompt_is_refused_by_its_size(server, model):
    status, text = server.post(model, {"text_input": "a" * 1_000_000, "max_tokens": 4})
    assert status == 400 and "text_input: has 1000000 bytes, expected at most" in text
    body = {"text_input": "a", "max_tokens": 4, "stop_words": ["a" * 900_000, "b" * 100_000]}
    status, text = server.post(model, body)
    assert status == 400 and "stop_words: has 1000000 bytes, expected at most" in text


@pytest.fixture(scope="module")
def patient_server(tmp_path_factory, tiny_llama):
    """One that takes prompts of a megabyte."""
    folder = tmp_path_factory.mktemp("patient")
    repository = scripted_repository(folder, tiny_llama)
    path = repository / "preprocessing" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.parameters["max_seq_len"].string_value = "1000000"
    path.write_text(text_format.MessageToString(config))
    with serving(repository, folder) as running:
        yield running


@BOTH
def test_short_requests_do_not_wait_while_huge_prompts_are_tokenised(patient_server, model):
    """Three prompts of 1 MB at once. A short request that waited for one of them would end after it."""
    huge = {"text_input": ("Tyger Tyger, burning bright. " * 40_000)[:1_000_000], "max_tokens": 4, "top_k": -1}
    start = time.monotonic()

    def send() -> float:
        status, text = patient_server.post(model, huge)
        assert status == 400 and "runtime_top_k: -1" in text  # refused by the engine: it was tokenised
        return time.monotonic() - start

    with ThreadPoolExecutor(3) as threads:
        sent = [threads.submit(send) for _ in range(3)]
        short = []
        while not any(one.done() for one in sent):
            before = time.monotonic() - start
            assert patient_server.post(model, {"text_input": "Hello.", "max_tokens": 4})[0] == 200
            short.append((before, time.monotonic() - start))
        first = min(one.result() for one in sent)
    # The huge ones are not there yet when the first short ones are sent.
    overtook = [end for begin, end in short if begin > first / 10 and end < first]
    assert len(overtook) >= 3, (short, first)
