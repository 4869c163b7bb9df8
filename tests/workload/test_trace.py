"""Traces: what is replayed, what prompts share, and each way in which a file can be wrong, as one line."""

import json
import re
from typing import NamedTuple

import pytest

from tests.simulate.steady import Steady, config
from toolkit.errors import ToolkitError
from toolkit.simulate import simulate
from toolkit.workload import Traffic, traffic_of
from toolkit.workload import trace as traces
from toolkit.workload.traffic import Planned


def line(ms: object = 0, tokens: object = 100, output: object = 5, **other: object) -> str:
    return json.dumps({"timestamp": ms, "input_length": tokens, "output_length": output, **other})


@pytest.fixture
def trace(tmp_path):
    def write(*lines: str, end: str = "\n"):
        file = tmp_path / "trace.jsonl"
        file.write_text(end.join(lines))
        return file

    return write


class Asked(NamedTuple):
    due: float
    prompt: list[int]
    output_tokens: int
    shares: bool


def read_trace(*arguments, **limits) -> list[Asked]:
    lines = traces.read_trace(*arguments, **limits).lines
    return [Asked(line.due, list(traces.tokens_of(line)), line.output_length, bool(line.blocks)) for line in lines]


def common(one, other) -> int:
    """How many tokens two prompts begin with in common; that they have no others in common."""
    one, other = list(one), list(other)
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert not set(one[same:]) & set(other[same:])
    return same


def test_times_lengths_and_order(trace):
    found = read_trace(trace(line(5000, 7, 2), "", line(3500, 9, 1), line(5250.5, 1, 1)))
    assert [(r.due, len(r.prompt), r.output_tokens) for r in found] == [(0, 9, 1), (1.5, 7, 2), (1.7505, 1, 1)]
    assert not any(request.shares for request in found)
    assert common(found[0].prompt, found[1].prompt) == 0


def test_unix_times_keep_their_milliseconds(trace):
    found = read_trace(trace(line(1_700_000_000_000), line(1_700_000_000_001)))
    assert found[1].due == pytest.approx(0.001, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ([1, 2, 3], [1, 2, 4], 1024),
        ([1, 2, 3], [1, 2, 3], 1500),  # the third block holds only 476 tokens, and they are the same
        ([1, 2, 3], [4, 2, 3], None),
        ([1], [1], 512),  # what follows the named blocks is each prompt's own
        ([1], [], 0),
        ([-1], [-1], 512),
        ([2**64 + 1, 5], [2**64 + 1, 6], 512),  # ids may be hashes
    ],
)
def test_equal_ids_are_equal_blocks(trace, first, second, shared):
    one, other = read_trace(trace(line(tokens=1500, hash_ids=first), line(tokens=1500, hash_ids=second)))
    assert len(one.prompt) == len(other.prompt) == 1500
    if shared is None:
        assert list(one.prompt)[:512] != list(other.prompt)[:512]
    else:
        assert common(one.prompt, other.prompt) == shared
    assert (one.shares, other.shares) == (bool(first), bool(second))


@pytest.mark.parametrize("reuse", [False, True])
def test_kv_reuse_computes_a_common_prefix_once(trace, reuse):
    """Ten prompts of 1500 tokens, of which 1024 are the same: in whole blocks of 32, 32 of 46 are found."""
    file = trace(*(line(n * 1000, 1500, 1, hash_ids=[7, 8, 100 + n]) for n in range(10)))
    requests = tuple(Planned(r.due, r.prompt, r.output_tokens) for r in read_trace(file))
    times = Steady([0.1])
    simulate(
        Traffic(requests, 1.0, None, True),
        config(max_num_tokens=2048, tokens_per_block=32, num_blocks=2000, reuse=reuse),
        times,
    )
    computed = [work.context_tokens for work in times.works]
    assert computed == [1500] + [476 if reuse else 1500] * 9
    if reuse:  # each of the 476 sees all before it
        assert times.works[1].context_pairs == 476 * 1024 + 476 * 477 // 2


@pytest.mark.parametrize("rate", [None, 0.5, 20])
def test_a_rate_stretches_the_trace(deployment, trace, rate):
    file = trace(*(line(1000 + 250 * n) for n in range(41)))
    traffic = traffic_of(deployment(arrivals="trace", trace=str(file), **({"rate": rate} if rate else {})))
    assert traffic.rate == pytest.approx(rate or 4)
    assert [r.due for r in traffic.requests] == pytest.approx([n / (rate or 4) for n in range(41)])
    assert not traffic.shares_prefixes


def test_so_many_requests_as_the_workload_says_and_only_these_are_judged(deployment, trace):
    file = trace(*(line(1000 * n) for n in range(10)), line(10_000, 9000), line(500, hash_ids=[1]))
    traffic = traffic_of(deployment(arrivals="trace", trace=str(file), requests=10))
    assert len(traffic.requests) == 10 and traffic.shares_prefixes
    with pytest.raises(ToolkitError, match=r"trace.jsonl:11: 9000 prompt \+ 5 output tokens are more .* 8192\. Raise"):
        traffic_of(deployment(arrivals="trace", trace=str(file)))


def test_a_trace_beside_the_yaml(deployment, trace, tmp_path):
    trace(line(0), line(1000))
    assert traffic_of(deployment(arrivals="trace", trace="trace.jsonl")).rate == 1


@pytest.mark.parametrize("lines", [[line(0)], [line(5), line(5), line(5)]])
def test_a_trace_without_time(deployment, trace, lines):
    traffic = traffic_of(deployment(arrivals="trace", trace=str(trace(*lines))))
    assert [request.due for request in traffic.requests] == [0.0] * len(lines)
    assert all(request.due > 0 for request in traffic.opened().requests)


def test_what_json_allows_within_a_line(trace):
    """A line separator in a text, a byte order mark and Windows' line ends."""
    file = trace(line(0, text="a\u2028b\x0cc"), line(1, other=[{}]), end="\r\n")
    file.write_text("\ufeff" + file.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")
    assert len(read_trace(file)) == 2


def test_a_large_block_table_costs_only_the_lines_that_are_replayed(trace):
    """A billion tokens of which one block is named are counted, not made."""
    file = trace(line(0), line(1, 10**9, hash_ids=[1]))
    with pytest.raises(ToolkitError, match=r"trace\.jsonl:2: 1000000000 prompt"):
        read_trace(file, max_seq_len=8192)


BAD = [
    ("", "trace.jsonl: holds no requests. A line is {"),
    ("\n \n", "trace.jsonl: holds no requests."),
    (line() + "\n{", "trace.jsonl:2: not JSON. A line is {"),
    ("[" * 100_000, "trace.jsonl:1: not JSON."),
    ('{"timestamp": ' + "9" * 5000 + "}", "trace.jsonl:1: not JSON."),
    ("[1, 2]", "trace.jsonl:1: expected an object, got [1, 2]."),
    ("null", "trace.jsonl:1: expected an object, got None."),
    ("{}", "trace.jsonl:1: timestamp: expected milliseconds, got None."),
    (line("now"), "timestamp: expected milliseconds, got 'now'."),
    (line(True), "timestamp: expected milliseconds, got True."),
    (line(float("nan")), "timestamp: expected milliseconds, got nan."),
    (line(float("inf")), "timestamp: expected milliseconds, got inf."),
    (line(0) + "\n" + line(1e300), "trace.jsonl:2: its time 1e+300 is more than 10 years after that of line 1, 0."),
    (line(-1e308) + "\n" + line(1e308), "trace.jsonl:2: its time 1e+308 is more than 10 years after that of line 1,"),
    (line(10**400), "timestamp: expected milliseconds, got a number of 1329 bits."),
    ('{"timestamp": 0, "output_length": 5}', "trace.jsonl:1: input_length: expected from 1 to 1,000,000,000 tokens,"),
    (line(tokens=0), "input_length: expected from 1 to 1,000,000,000 tokens, got 0."),
    (line(tokens=-4), "got -4."),
    (line(tokens=True), "got True."),
    (line(tokens=1.5), "got 1.5."),
    (line(tokens="9"), "got '9'."),
    (line(tokens=float("nan")), "input_length: expected from 1 to 1,000,000,000 tokens, got nan."),
    (line(tokens=10**30), "input_length: expected from 1 to 1,000,000,000 tokens, got a number of 100 bits."),
    (line(output=0) + "\n" + line(output=None), "trace.jsonl: holds no requests: none of 2 rows has output tokens. A"),
    (line(output=False), "output_length: expected from 1 to 1,000,000,000 tokens, got False."),
    ('{"timestamp": 0, "input_length": 5}', "output_length: expected from 1 to 1,000,000,000 tokens, got 'missing'."),
    (line(hash_ids=5), "hash_ids: expected a list of whole numbers, got 5"),
    (line(hash_ids={}), "hash_ids: expected a list of whole numbers, got {}"),
    (line(hash_ids=[1, "a"]), "hash_ids: expected a list of whole numbers, got [1, 'a']"),
    (line(hash_ids=[True]), "hash_ids: expected a list of whole numbers, got [True]"),
    (line(tokens=512, hash_ids=[1, 2]), "trace.jsonl:1: hash_ids: 2 blocks of 512 tokens are more than input_length"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=lambda value: re.sub(r"\W+", " ", str(value))[:40])
def test_a_mistake_is_one_line_naming_file_and_line(tmp_path, text, message):
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(ToolkitError) as caught:
        read_trace(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/trace.jsonl:")
    assert "\n" not in str(caught.value) and len(str(caught.value)) - len(str(tmp_path)) < 330


def test_files_that_are_none(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "zeros").write_bytes(bytes(100))
    for name, message in (
        ("missing", "missing: cannot be read: No such file or directory"),
        (".", "not a file"),
        ("binary", "binary: cannot be read: not UTF-8 text"),
        ("zeros", "zeros:1: not JSON"),
    ):
        with pytest.raises(ToolkitError, match=message):
            read_trace(tmp_path / name)
    with pytest.raises(ToolkitError, match=r"/dev/zero: not a file"):
        read_trace(tmp_path / "/dev/zero")
