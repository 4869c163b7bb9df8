"""The traffic that is kept: equal to the traffic that came in counts, lengths and shared prefixes, without its text."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.load.requests import request_source
from toolkit.plan.what_if import load_changed
from toolkit.workload.trace import TraceLine, read_trace, tokens_of
from toolkit.workload.traffic import traffic_of

from .sources import SOURCES, kept_traffic

KeptRequest, KeptTraffic, TrafficFile = kept_traffic.KeptRequest, kept_traffic.KeptTraffic, kept_traffic.TrafficFile
FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-2xtp4-fp16.yaml"
BLOCK = 32


def known_trace(file: Path) -> list[TraceLine]:
    """40 requests over two system prompts of 64 and 192 tokens, a third with prompts of their own."""
    rnd, rows = random.Random(7), []
    for number in range(40):
        shared = [[], [1, 2], [3, 4, 5, 6, 7, 8]][number % 3]
        length = 32 * len(shared) + rnd.randint(1, 300)
        own = [1000 + 100 * number + place for place in range(-(-length // 32) - len(shared))]
        row = {"timestamp": 250 * number, "input_length": length, "output_length": rnd.randint(1, 60)}
        rows.append({**row, "hash_ids": shared + own, "block_tokens": 32})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_trace(file).lines


def shared(lines: list[TraceLine]) -> list[int]:
    """The blocks that each pair of prompts has in common from the beginning."""

    def common(a: list[int], b: list[int]) -> int:
        return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return [common(a.blocks, b.blocks) for a, b in combinations(lines, 2)]


def prompt_of(line: TraceLine) -> list[int]:
    return [token & 0x7FFF for token in tokens_of(line)]


@pytest.fixture
def trace(tmp_path) -> tuple[list[TraceLine], Path]:
    """A known trace, and the file that was kept of it. Requests end in another order than they come."""
    lines, file = known_trace(tmp_path / "known.jsonl"), tmp_path / "kept.jsonl"
    kept, now = KeptTraffic(TrafficFile(file, BLOCK)), time.monotonic()
    for line in sorted(lines, key=lambda line: line.due + line.output_length):
        kept.note(now + line.due, prompt_of(line), line.output_length)
    kept.end()
    return lines, file


def test_what_is_kept_equals_what_came(trace):
    lines, file = trace
    kept = read_trace(file).lines
    assert [line.input_length for line in kept] == [line.input_length for line in lines]
    assert [line.output_length for line in kept] == [line.output_length for line in lines]
    assert [line.due for line in kept] == pytest.approx([line.due for line in lines], abs=0.002)
    assert shared(kept) == shared(lines) and max(shared(lines)) == 6


def test_plan_and_loadtest_replay_it(trace, tmp_path, tiny_llama):
    lines, file = trace
    planned = traffic_of(load_changed(FLAGSHIP, settings=[f"workload=trace:{file}"]))
    assert planned.shares_prefixes and len(planned.requests) == len(lines)
    assert [len(request.prompt) for request in planned.requests] == [line.input_length for line in lines]
    config = tmp_path / "small.yaml"
    config.write_text(
        f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nhardware: {{gpu: none}}\n"
        "limits: {max_sequences: 8, max_num_tokens: 256, max_seq_len: 1024}\n"
    )
    for name in (str(file), f"trace:{file}"):
        source = request_source(load_deployment(config), name)
        requests = [source.request(number).request for number in source.firsts]
        assert [request.max_tokens for request in requests] == [line.output_length for line in lines]
        dues = [source.due(number) for number in source.firsts]
        assert dues == pytest.approx([line.due for line in lines], abs=0.002)


@pytest.mark.parametrize("value", ["known.jsonl", "trace:", "file:known.jsonl"])
def test_a_workload_that_is_no_trace_is_one_line(value):
    with pytest.raises(ToolkitError, match=r"workload: .* is not a trace\. Use trace:FILE"):
        load_changed(FLAGSHIP, settings=[f"workload={value}"])


def test_nobody_without_the_key_can_test_a_guess(tmp_path):
    """The same prompt has other ids in a file with another key, and only the owner can read file and key."""
    ids = []
    for name in ("a.jsonl", "b.jsonl"):
        TrafficFile(tmp_path / name, BLOCK).append([KeptRequest(0, [11, 12, 13], 1)])
        (line,) = read_lines(tmp_path / name)
        assert set(line) == {"timestamp", "input_length", "output_length", "hash_ids", "block_tokens"}
        ids.append(line["hash_ids"])
        for file in (tmp_path / name, tmp_path / f"{name}.key"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ids[0] != ids[1]
    TrafficFile(tmp_path / "a.jsonl", BLOCK).append([KeptRequest(0, [11, 12, 13], 1)])
    assert read_lines(tmp_path / "a.jsonl")[1]["hash_ids"] == ids[0], "after a restart the key is the same"


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_its_size_is_bounded(tmp_path):
    file = TrafficFile(tmp_path / "kept.jsonl", BLOCK, most_bytes=4000)
    for number in range(200):
        file.append([KeptRequest(number, range(number, number + 100), 9)])
    assert file.path.stat().st_size <= 4000 and file.predecessor.stat().st_size <= 4000
    kept = read_lines(file.predecessor) + read_lines(file.path)
    assert [line["timestamp"] for line in kept] == list(range(200))[-len(kept) :], "the newest, without a gap"
    assert len(list(tmp_path.iterdir())) == 3


def test_blocks_of_another_size_begin_another_file(tmp_path):
    for block in (32, 64):
        TrafficFile(tmp_path / "kept.jsonl", block).append([KeptRequest(0, range(100), 1)])
    assert [len(line["hash_ids"]) for line in read_lines(tmp_path / "kept.jsonl")] == [2]
    assert [len(line["hash_ids"]) for line in read_lines(tmp_path / "kept.jsonl.1")] == [4]


MANY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kept_traffic import KeptRequest, TrafficFile
file = TrafficFile(Path(sys.argv[2]), 32, most_bytes=200_000)
for number in range(100):
    file.append([KeptRequest(number, range(64), int(sys.argv[3]))])
"""


def test_several_processes_share_the_file(tmp_path):
    file, shared_folder = tmp_path / "kept.jsonl", str(SOURCES / "shared")
    processes = [
        subprocess.Popen([sys.executable, "-c", MANY, shared_folder, str(file), str(number)]) for number in (1, 2, 3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    lines = read_lines(file)
    assert sorted(line["output_length"] for line in lines) == [1] * 100 + [2] * 100 + [3] * 100
    assert len({tuple(line["hash_ids"]) for line in lines}) == 1, "one key, whoever came first"


FULL = """
import resource, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kept_traffic import KeptTraffic, TrafficFile
file = TrafficFile(Path(sys.argv[2]), 32)
kept = KeptTraffic(file)
def wait(condition):
    while not condition(): time.sleep(0.05)
kept.note(0.0, range(40), 1)
wait(lambda: file.path.exists() and file.path.stat().st_size)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 20, -1))
for _ in range(3):
    kept.note(0.0, range(40), 2)
    wait(lambda: kept._pending.empty())
    time.sleep(0.6)  # for the write of what was taken
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
kept.note(0.0, range(40), 3)
kept.end()
"""


def test_a_full_disk_is_said_once_and_leaves_whole_lines(tmp_path):
    """A limit of the size of files stands for it: the write ends in the middle of a line."""
    file = tmp_path / "kept.jsonl"
    command = [sys.executable, "-c", FULL, str(SOURCES / "shared"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "the traffic is not kept" in done.stderr
    assert [line["output_length"] for line in read_lines(file)] == [1, 3], "and when there is room, it goes on"


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda folder: (folder / "kept.jsonl.key").write_text("{"), "kept.jsonl.key is damaged"),
        (lambda folder: (folder / "kept.jsonl").mkdir(), "Is a directory"),
        (lambda folder: os.mkfifo(folder / "kept.jsonl"), "No such device or address"),
        (lambda folder: folder.rmdir(), "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, break_it, why):
    folder, said = tmp_path / "traffic", []
    folder.mkdir()
    break_it(folder)
    kept = KeptTraffic(TrafficFile(folder / "kept.jsonl", BLOCK), said.append)
    kept.note(0.0, [1, 2, 3], 1)
    kept.end()
    assert len(said) == 1 and why in said[0] and "serving goes on" in said[0]


def test_a_disk_that_hangs_delays_nobody_and_memory_is_bounded(tmp_path, monkeypatch):
    file = TrafficFile(tmp_path / "kept.jsonl", BLOCK)
    kept = KeptTraffic(file)
    monkeypatch.setattr(kept, "_write", lambda: None)
    for number in range(2 * kept_traffic.PENDING):
        kept.note(0.0, [number], 1)
    assert kept._pending.qsize() == kept_traffic.PENDING
    kept.end()


def test_block_tokens_that_change_within_a_file_are_one_line(tmp_path):
    file = tmp_path / "mixed.jsonl"
    row = {"timestamp": 0, "input_length": 100, "output_length": 5, "hash_ids": [1, 2]}
    file.write_text("".join(json.dumps({**row, "block_tokens": n}) + "\n" for n in (64, 128)))
    with pytest.raises(ToolkitError, match=r"mixed.jsonl:2: block_tokens: expected 64, .* got 128"):
        read_trace(file)
    file.write_text(json.dumps({**row, "block_tokens": "x"}) + "\n")
    with pytest.raises(ToolkitError, match=r"mixed.jsonl:1: block_tokens: expected from 1 .* got 'x'"):
        read_trace(file)
