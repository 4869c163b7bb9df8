"""How well the server of known truth keeps its word, and what it costs.

    python benchmarks/known_truth.py

Streams at once against `toolkit.known_truth` in a process of its own, TTFT 200 ms and ITL 20 ms; read by bare
asyncio (HTTP) or by grpc.aio without decoding. Results are in benchmarks/known_truth.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.clock import EPOCH
from toolkit.known_truth import KnownTruth, Record, Settings

SETTINGS = Settings(ttft_ms=200, itl_ms=20)
TOKENS, ROUNDS = 200, 3
RUNS = (
    ("http", 1),
    ("http", 64),
    ("http", 100),
    ("http", 250),
    ("http", 500),
    ("grpc", 1),
    ("grpc", 64),
    ("grpc", 100),
    ("grpc", 150),
)
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
COLUMNS = ("protocol", "streams", "tokens/s", "CPU", "late P50", "late P99", "read P50", "read P99", "TPOT off P99")

Arrivals = dict[str, list[float]]


async def read_http(url: str, name: str) -> list[float]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps({"text_input": "x", "max_tokens": TOKENS, "stream": True, "id": name})
    head = f"POST /v2/models/tensorrt_llm_bls/generate_stream HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    arrivals: list[float] = []
    while len(arrivals) < TOKENS:
        data = await reader.read(65536)
        arrivals += [time.perf_counter()] * data.count(b"text_output")
    writer.close()
    return arrivals


async def read_grpc(url: str, name: str) -> list[float]:
    import grpc
    import numpy as np
    from tritonclient.grpc import service_pb2 as pb

    request = pb.ModelInferRequest(model_name="tensorrt_llm_bls", id=name)
    for tensor, datatype, raw in (
        ("text_input", "BYTES", b"\1\0\0\0x"),
        ("max_tokens", "INT32", np.int32(TOKENS).tobytes()),
        ("stream", "BOOL", b"\1"),
    ):
        request.inputs.add(name=tensor, datatype=datatype, shape=[1, 1])
        request.raw_input_contents.append(raw)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://"), options) as channel:
        call = channel.unary_stream(STREAM)(request.SerializeToString())
        return [time.perf_counter() async for _ in call]


async def load(url: str, protocol: str, streams: int) -> Arrivals:
    """Streams begin 1 / streams of an interval apart, as those of a load test do not go in step."""
    read, found = read_http if protocol == "http" else read_grpc, Arrivals()

    async def user(number: int) -> None:
        await asyncio.sleep(number / streams * SETTINGS.itl_ms / 1e3)
        for turn in range(ROUNDS):
            name = f"{number}-{turn}"
            found[name] = await read(url, name)

    await asyncio.gather(*(user(number) for number in range(streams)))
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def row(protocol: str, streams: int, records: list[Record], arrivals: Arrivals, cpu: float) -> str:
    """In ms. Late: sent after it was due. Read: from there to the reader. TPOT: of the record against the ITL."""
    late, reading, tpot = [], [], []
    for record in records:
        begun = record.started or record.arrived
        late += [(sent - begun - SETTINGS.due_s(k)) * 1e3 for k, sent in enumerate(record.token_times)]
        there = [EPOCH + moment for moment in arrivals[record.id]]
        reading += [(got - sent) * 1e3 for got, sent in zip(there, record.token_times, strict=True)]
        tpot.append(abs((record.token_times[-1] - record.token_times[0]) / (TOKENS - 1) * 1e3 - SETTINGS.itl_ms))
    sent = [moment for record in records for moment in record.token_times]
    rate = len(sent) / (max(sent) - min(record.arrived for record in records))
    cells = [f"{percentile(values, share):.2f}" for values in (late, reading) for share in (0.5, 0.99)]
    return f"| {protocol} | {streams} | {rate:,.0f} | {cpu:.2f} | {' | '.join(cells)} | {percentile(tpot, 0.99):.3f} |"


def main() -> None:
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for protocol, streams in RUNS:
        with KnownTruth(SETTINGS) as truth:
            arrivals = asyncio.run(load(truth.url(protocol), protocol, streams))
            records = truth.records(streams * ROUNDS)
        print(row(protocol, streams, records, arrivals, float(truth.summary["cpu_cores"] or 0)), flush=True)
    print(f"load average after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
