"""A stand-in for Triton whose timings are known: HTTP generate / generate_stream and gRPC ModelStreamInfer; and, at
the HTTP port too, OpenAI's API (openai_probe.py).

Every event carries the moment it was handed to the socket (`last_token_time_ns`, of the clock that
time.perf_counter() reads, which is one for all processes of a machine), so a test compares what a client
measured with what really happened and not with the nominal interval. The first word of a prompt chooses
the scenario. GET /probe/log tells what the server saw: one record a request.

    python probe.py --ttft 0.2 --itl 0.02      prints one line of JSON with the ports, then serves until stdin closes
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.client import openai_probe


@dataclass
class Seen:
    """What the server saw of one request."""

    prompt: str
    inputs: dict[str, Any]
    protocol: str
    connection: int
    arrival_ns: int = field(default_factory=time.perf_counter_ns)
    sent: int = 0
    cancelled: bool = False
    is_gone: Callable[[], bool] = lambda: False

    def record(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "is_gone"}

    def outputs(self, text: str) -> dict[str, Any]:
        return {
            "text_output": text,
            "sequence_index": 0,
            "cum_log_probs": -0.5,
            "output_log_probs": [-0.25, -0.25],
            "arrival_time_ns": self.arrival_ns,
            "last_token_time_ns": time.perf_counter_ns(),
        }


class Probe:
    def __init__(self, ttft_s: float, itl_s: float) -> None:
        self.ttft_s, self.itl_s = ttft_s, itl_s
        self.log: list[Seen] = []
        self.connections = 0
        self.ready = True

    async def pace(self, seen: Seen, tokens: int):
        """The number of each token, when it is due: drift-free, so that a slow send does not add up."""
        start = time.perf_counter()
        for number in range(tokens):
            due = start + self.ttft_s + number * self.itl_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if seen.is_gone():
                seen.cancelled = True
                return
            yield number
            seen.sent += 1


# --- HTTP -------------------------------------------------------------------------------------------


class HttpProbe:
    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.probe.connections += 1
        number = self.probe.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.serve_request(reader, writer, number):
                pass
        writer.close()

    async def serve_request(self, reader, writer, connection: int) -> bool:
        """Answers one request; False when the connection is not to be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            return self.answer_get(writer, path, headers)
        inputs = json.loads(body)
        is_openai = path.startswith("/v1/")
        prompt = openai_probe.prompt_of(inputs) if is_openai else inputs.pop("text_input")
        seen = Seen(prompt, {**inputs, **bearer(headers)}, "openai" if is_openai else "http", connection)
        self.probe.log.append(seen)
        scenario = seen.prompt.split()[0]
        seen.is_gone = lambda: reader.at_eof() or writer.is_closing()
        if scenario in WHOLE_ANSWERS:
            return self.whole(writer, *WHOLE_ANSWERS[scenario])
        if scenario == "drip":
            return await self.drip(writer)
        if scenario in HEADS:
            writer.write(HEADS[scenario])
            return await self.hang(seen)
        if scenario == "echo":
            words = f"Incorrect API key provided: {headers['authorization']}"
            return self.whole(writer, 401, json.dumps({"error": {"message": words, "code": "invalid_api_key"}}))
        if is_openai:
            return await openai_probe.answer(self, writer, seen, scenario, path)
        if path.endswith("/generate"):
            return await self.generate(writer, seen)
        return await self.stream(writer, seen, scenario)

    async def drip(self, writer) -> bool:
        """A byte now and then, for 5 s: each comes in time, and all of them never do."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n")
        for _ in range(98):
            writer.write(b" ")
            await asyncio.sleep(0.05)
        return False

    async def hang(self, seen: Seen) -> bool:
        while not seen.is_gone():
            await asyncio.sleep(0.01)
        seen.cancelled = True
        return False

    def answer_get(self, writer, path: str, headers: dict[str, str]) -> bool:
        if path == "/probe/log":
            return self.whole(writer, 200, json.dumps([seen.record() for seen in self.probe.log]))
        if path == "/v2/health/ready":
            return self.whole(writer, 200 if self.probe.ready else 400, "")
        if path == "/v1/models":
            if "wrong" in headers.get("authorization", ""):
                return self.whole(writer, 401, '{"error": {"message": "Invalid API key"}}')
            return self.whole(writer, 200 if self.probe.ready else 503, '{"object": "list", "data": []}')
        return self.whole(writer, 404, '{"error":"Not Found"}')

    async def generate(self, writer, seen: Seen) -> bool:
        pieces = [piece(number) async for number in self.probe.pace(seen, seen.inputs["max_tokens"])]
        return self.whole(writer, 200, json.dumps(self.event(seen, "".join(pieces))))

    def event(self, seen: Seen, text: str) -> dict[str, Any]:
        named = {"id": seen.inputs["id"]} if "id" in seen.inputs else {}
        return {**named, "model_name": "tensorrt_llm_bls", "model_version": "1", **seen.outputs(text)}

    async def stream(self, writer, seen: Seen, scenario: str) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        tokens = 0 if scenario == "empty" else seen.inputs["max_tokens"]
        async for number in self.probe.pace(seen, tokens):
            if number == 2 and scenario in BREAKS:
                self.chunk(writer, BREAKS[scenario])
                if scenario == "cut":
                    return False
                break
            if number == 2 and scenario == "stall":
                return await self.hang(seen)
            if scenario == "dribble":  # one event in two chunks, the second half an interval later
                data = sse(self.event(seen, piece(number)))
                self.chunk(writer, data[:9])
                await asyncio.sleep(self.probe.itl_s / 2)
                self.chunk(writer, sse(self.event(seen, piece(number)))[9:])
            else:
                self.chunk(writer, sse(self.event(seen, piece(number))))
        if not seen.cancelled:
            writer.write(b"0\r\n\r\n")
        if scenario == "extra":
            self.chunk(writer, sse(self.event(seen, " more")))
        return not seen.cancelled and scenario != "goodbye"

    @staticmethod
    def chunk(writer, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    @staticmethod
    def whole(writer, status: int, body: str, content_type: str = "application/json") -> bool:
        data = body.encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        return True


def sse(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def piece(number: int) -> str:
    return f" é{number}"


def bearer(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name == "authorization"}


REFUSAL = "prompt has 9 tokens, the limit is 8"
WHOLE_ANSWERS = {
    "refuse": (400, f'data: {{"error":"{REFUSAL}"}}\n\n', "text/event-stream"),
    "forbid": (400, f'{{"error":"{REFUSAL}"}}'),
    "nonsense": (404, "<html>no such page</html>"),
    "busy": (503, '{"error":"Maximum queue size of 4 has been reached"}'),
    "html": (200, "<html>Welcome</html>", "text/html"),
    "sized": (200, 'data: {"text_output": "x"}\n\n', "text/event-stream"),
    "hollow": (200, "[]"),
}
# What arrives, and then nothing more.
HEADS = {
    "mute": b"",
    "late": openai_probe.STREAM,
    "banner": b"SSH-2.0-OpenSSH_9.6\r\n",
}
# What arrives in the place of the third event.
BREAKS = {
    "error": b'data: {"error": "Executor failed process requestId 7"}\n\n',
    "cut": b'data: {"model_name": "tensorrt_llm_bls", "text_out',
    "unfinished": b'data: {"text_output": "no blank line"}\n',
    "garbage": b"data: {not JSON}\n\n",
    "number": b"data: 1\n\n",
    "page": b"<html>\n<body>Bad gateway</body>\n</html>\n\n",
    "textless": b'data: {"model_name": "tensorrt_llm_bls"}\n\n',
}


# --- gRPC -------------------------------------------------------------------------------------------


def grpc_server(probe: Probe):
    import grpc
    import numpy as np
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc
    from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

    def inputs_of(request: pb.ModelInferRequest) -> dict[str, Any]:
        values = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            if tensor.datatype == "BYTES":
                items = [item.decode() for item in deserialize_bytes_tensor(raw)]
            else:
                items = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).tolist()
            assert list(tensor.shape) == [1, len(items)], tensor
            values[tensor.name] = items
        return values

    def response_of(seen: Seen, text: str) -> pb.ModelStreamInferResponse:
        answer = pb.ModelInferResponse(model_name="tensorrt_llm_bls", model_version="1")
        for name, value in seen.outputs(text).items():
            items = value if isinstance(value, list) else [value]
            datatype = {int: "INT64", float: "FP32", str: "BYTES"}[type(items[0])]
            if name == "sequence_index":
                datatype = "INT32"
            answer.outputs.add(name=name, datatype=datatype, shape=[1, len(items)])
            if datatype == "BYTES":
                raw = serialize_byte_tensor(np.array([item.encode() for item in items], dtype=object)).item()
            else:
                raw = np.array(items, dtype=triton_to_np_dtype(datatype)).tobytes()
            answer.raw_output_contents.append(raw)
        return pb.ModelStreamInferResponse(infer_response=answer)

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        async def ServerReady(self, request, context):
            return pb.ServerReadyResponse(ready=probe.ready)

        async def ModelStreamInfer(self, requests, context):
            async for request in requests:
                inputs = inputs_of(request)
                prompt = inputs.pop("text_input")[0]
                seen = Seen(prompt, {**inputs, "id": request.id}, "grpc", hash(context.peer()))
                probe.log.append(seen)
                try:
                    await self.answer(seen, context)
                except asyncio.CancelledError:
                    seen.cancelled = True
                    raise

        async def answer(self, seen: Seen, context) -> None:
            scenario = seen.prompt.split()[0]
            if scenario == "refuse":
                return await context.write(pb.ModelStreamInferResponse(error_message=REFUSAL))
            if scenario == "forbid":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, REFUSAL)
            if scenario == "busy":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Maximum queue size of 4 has been reached")
            if scenario == "late":
                await context.send_initial_metadata(())
            if scenario in ("mute", "late"):
                await asyncio.sleep(3600)
            if not seen.inputs["stream"][0]:
                texts = [piece(number) async for number in probe.pace(seen, seen.inputs["max_tokens"][0])]
                return await context.write(response_of(seen, "".join(texts)))
            if scenario == "empty":
                return
            async for number in probe.pace(seen, seen.inputs["max_tokens"][0]):
                if number == 2 and scenario == "mangled":
                    answer = response_of(seen, piece(number))
                    answer.infer_response.outputs[1].shape[:] = [7]
                    return await context.write(answer)
                if number == 2 and scenario == "stall":
                    await asyncio.sleep(3600)
                if number == 2 and scenario == "error":
                    message = "Executor failed process requestId 7"
                    return await context.write(pb.ModelStreamInferResponse(error_message=message))
                if number == 2 and scenario == "cut":
                    await context.abort(grpc.StatusCode.INTERNAL, "the backend died")
                if number == 2 and scenario == "textless":
                    return await context.write(pb.ModelStreamInferResponse(infer_response={"model_name": "x"}))
                await context.write(response_of(seen, piece(number)))

    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    return server


# --- running it ---------------------------------------------------------------------------------------


async def serve(ttft_s: float, itl_s: float) -> None:
    probe = Probe(ttft_s, itl_s)
    http = await asyncio.start_server(HttpProbe(probe).serve_connection, "127.0.0.1", 0)
    grpc = grpc_server(probe)
    grpc_port = grpc.add_insecure_port("127.0.0.1:0")
    await grpc.start()
    print(json.dumps({"http": http.sockets[0].getsockname()[1], "grpc": grpc_port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await grpc.stop(None)


@dataclass(frozen=True)
class RunningProbe:
    http: str
    grpc: str
    process: subprocess.Popen[str] | None = None

    def log(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.http}/probe/log") as answer:
            return json.load(answer)

    def url(self, protocol: str) -> str:
        return {"http": self.http, "grpc": self.grpc, "openai": f"openai+{self.http}"}[protocol]


@contextlib.contextmanager
def running_probe(ttft_s: float = 0.2, itl_s: float = 0.02):
    """The probe in a process of its own, so that its clock does not wait for the client's interpreter."""
    command = [sys.executable, str(Path(__file__)), "--ttft", str(ttft_s), "--itl", str(itl_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        ports = json.loads(process.stdout.readline())
        yield RunningProbe(f"http://127.0.0.1:{ports['http']}", f"grpc://127.0.0.1:{ports['grpc']}", process)
        process.stdin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ttft", type=float, default=0.2)
    parser.add_argument("--itl", type=float, default=0.02)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.ttft, arguments.itl))
