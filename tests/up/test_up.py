"""`toolkit up` with real parts: Envoy, Dynamo's runtime, two real Tritons. Clients are those that people have."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import numpy as np
import openai
import tritonclient.grpc
import tritonclient.http

from tests import commands
from tests.gateway.test_envoy import ask
from tests.waiting import eventually
from toolkit.gateway.door import up_pid

PROMPT = "Shall I compare thee to"
TEXT = " a summer's day?\nThou art more lovely and more temperate:"
GENERATE = "/v2/models/ensemble/generate"

pytestmark = pytest.mark.slow


@pytest.fixture
def client(up):
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def complete(client: openai.OpenAI, tokens: int = 24, **more) -> str:
    answer = client.completions.create(model="llama", prompt=PROMPT, max_tokens=tokens, temperature=0, **more)
    return answer.choices[0].text


def stream(client: openai.OpenAI, tokens: int = 200) -> str:
    """The whole text of a stream. Raises openai.APIError for one that is cut."""
    pieces = client.completions.create(
        model="llama", prompt=PROMPT, max_tokens=tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    return "".join(piece.choices[0].text for piece in pieces if piece.choices)


def test_openai_s_client(client):
    assert [model.id for model in client.models.list()] == ["llama"]
    assert complete(client).startswith(TEXT[:20])
    assert stream(client, 24).startswith(TEXT[:20])
    answer = client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": PROMPT}], max_tokens=5, temperature=0, logprobs=True
    )
    assert answer.usage and answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"
    content = answer.choices[0].logprobs.content
    assert len(content) == 5 and all(token.logprob <= 0 for token in content)


def test_openai_s_parameters_do_what_they_say(client):
    assert complete(client, stop=["day"]) == " a summer's "
    seeded = [complete_drawn(client, seed=7) for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert len({complete_drawn(client, seed=seed) for seed in range(8)}) > 1
    usage = client.completions.create(
        model="llama", prompt=PROMPT, max_tokens=40, temperature=0, extra_body={"ignore_eos": True}
    ).usage
    assert usage and usage.completion_tokens == 40


def complete_drawn(client: openai.OpenAI, seed: int) -> str:
    answer = client.completions.create(model="llama", prompt="x", max_tokens=8, temperature=2.0, seed=seed)
    return answer.choices[0].text


def test_what_is_wrong_with_a_request_is_its_sender_s_to_know(client):
    with pytest.raises(openai.NotFoundError, match="this is llama"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="send 2 requests"):
        complete(client, n=2)
    with pytest.raises(openai.BadRequestError, match="Use max_tokens of at most"):
        complete(client, tokens=5000)
    with pytest.raises(openai.BadRequestError, match="Use max_tokens of at most"):
        stream(client, tokens=5000)


def test_openai_s_asynchronous_client(up):
    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.completions.create(model="llama", prompt=PROMPT, max_tokens=8, temperature=0)
                    for _ in range(8)
                )
            )
            return [answer.choices[0].text for answer in answers]

    assert len(set(asyncio.run(all_at_once()))) == 1


def test_triton_s_clients(up):
    host = up.url.removeprefix("http://")
    assert tritonclient.http.InferenceServerClient(host).is_server_ready()
    client = tritonclient.grpc.InferenceServerClient(host)
    assert client.is_server_ready()
    texts: list[str] = []
    client.start_stream(lambda result, error: texts.append(str(error) if error else _text(result)))
    inputs = [_tensor("text_input", np.array([[PROMPT]], object), "BYTES")]
    inputs += [_tensor("max_tokens", np.array([[8]], np.int32), "INT32")]
    inputs += [_tensor("stream", np.array([[True]]), "BOOL")]
    client.async_stream_infer("ensemble", inputs)
    client.stop_stream()
    assert TEXT.startswith("".join(texts)) and len(texts) == 8
    assert ask(up.url, GENERATE, {"text_input": PROMPT, "max_tokens": 4})[0] == 200


def _tensor(name: str, values: np.ndarray, datatype: str) -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def _text(result: tritonclient.grpc.InferResult) -> str:
    return result.as_numpy("text_output").reshape(-1)[0].decode()


def test_the_command_line_goes_through_the_door(up):
    for options in ([], ["--openai"], ["--grpc"], ["--direct"]):
        done = commands.toolkit("ask", up.file, PROMPT, "--max-tokens", 4, *options)
        assert done.returncode == 0, done.stderr
    done = commands.toolkit("status", up.file)
    assert done.returncode == 0 and up.url in done.stdout
    for part in ("gate", "front end", "envoy", "replica 0", "worker 1"):
        assert part in done.stdout


def test_a_yaml_that_changed_since_is_said(up):
    before = up.file.read_text()
    assert "changed" not in commands.toolkit("status", up.file).stdout
    up.file.write_text(before + "# another\n")
    assert "the YAML has changed since: toolkit restart --rolling" in commands.toolkit("status", up.file).stdout
    up.file.write_text(before)


def test_up_twice(up):
    done = commands.toolkit("up", up.file)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"is up already, by process {up_pid(up.deployment)}. Use it, or stop it: toolkit down" in done.stderr


def test_a_killed_rank_costs_no_request_and_no_stream(up, client):
    quiet = stream(client)
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, client) for _ in range(16)]
        eventually(lambda: sum(one.running() for one in streams) == 8)
        time.sleep(0.5)  # until they have tokens
        os.kill(up.ranks(0)[0].pid, signal.SIGKILL)
        texts = Counter(one.result(60) for one in streams)
    assert texts == {quiet: 16}
    eventually(lambda: up.phase == "degraded")
    up.wait_ready()
    ended = [event for event in up.events() if (event["part"], event["event"]) == ("replica 0", "ended")]
    # How it ended is mpirun's to say, which does not always come to it.
    assert "rank 0 " in ended[-1]["cause"] and "starts again in" in ended[-1]["action"]


def test_a_rolling_restart_loses_nothing(up, client):
    quiet = stream(client, 50)
    before = [up.part(f"replica {number}").pid for number in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        restarting = pool.submit(commands.toolkit, "restart", up.file, "--rolling")
        texts: Counter[str] = Counter()
        while not restarting.done():
            texts.update(pool.map(lambda _: stream(client, 50), range(3)))
        assert restarting.result().returncode == 0, restarting.result().stderr
    assert set(texts) == {quiet}
    assert not set(before) & {up.part(f"replica {number}").pid for number in (0, 1)}


@pytest.mark.parametrize("name", ["gate", "front end", "envoy", "worker 0"])
def test_a_part_of_the_door_that_dies_is_started_again(up, client, name):
    pid = up.part(name).pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: up.part(name).pid not in (None, pid), 10)
    eventually(lambda: complete(client, 4), 30)
    eventually(lambda: up.part(name).phase in ("running", "ready"), 30)


def test_while_no_replica_serves_503_says_when_to_come_again(up, client):
    for replica in (0, 1):
        os.kill(up.ranks(replica)[0].pid, signal.SIGKILL)
    eventually(lambda: up.phase == "down")
    status, headers, body = ask(up.url, GENERATE, {"text_input": PROMPT, "max_tokens": 4})
    assert (status, headers["retry-after"]) == (503, "1") and body["error"]
    with pytest.raises(openai.InternalServerError) as caught:
        complete(client)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "1")
    up.wait_ready()
    assert complete(client).startswith(TEXT[:20])


def test_a_group_that_hangs_is_ended_and_its_streams_move_on(up, client):
    quiet = stream(client)
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(stream, client) for _ in range(6)]
        time.sleep(0.5)  # until they have tokens
        rank = up.ranks(1)[0].pid
        for process in (psutil.Process(rank), *psutil.Process(rank).children(recursive=True)):
            process.suspend()
        assert {one.result(90) for one in streams} == {quiet}
    eventually(lambda: "hangs" in up.part("replica 1").message or up.part("replica 1").restarts, 60)
    up.wait_ready()


def test_killed_it_leaves_nothing(up):
    assert up.process
    left = psutil.Process(up.process.pid).children(recursive=True)
    assert len(left) > 10
    up.process.kill()
    up.process.wait()
    eventually(lambda: not any(process.is_running() for process in left), 90)
    up.start()


def test_down_drains_and_says_so(up, client):
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(stream, client)
        time.sleep(0.5)  # until it has tokens
        done = commands.toolkit("down", up.file)
        assert running.result(10)
    assert done.returncode == 0 and done.stdout.startswith("stopped process ")
    assert [event["event"] for event in up.events() if event["part"] == "toolkit up"][-2:] == ["draining", "stopped"]
    assert commands.toolkit("down", up.file).stdout == "nothing was up\n"
    up.start()
