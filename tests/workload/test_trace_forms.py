"""The public traces in their own forms: found from the file, read exactly, and what is wrong named by line and column.

The small files are of our own writing, in the columns that the publishers describe.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import toolkit
from toolkit.errors import ToolkitError
from toolkit.workload import traffic_of
from toolkit.workload.trace import read_trace, tokens_of
from toolkit.workload.trace_forms import form_of

MOONCAKE = '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}\n'
BAILIAN = (
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 70, "output_length": 20, "type": "text",'
    ' "turn": 1, "hash_ids": [11, 12, 13, 14, 15]}\n'
    '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 1.25, "input_length": 100, "output_length": 12, "type": "text",'
    ' "turn": 2, "hash_ids": [11, 12, 13, 14, 15, 16, 17]}\n'
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,Conversation log\n"
    "118,GPT-4,417,276,693,Conversation log\n"
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04.0319600,396,109\n"
)
SHAREGPT = '[{"id": "a_0", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}]'
GUIDELLM = '{"timestamp": 0.5, "input_length": 9, "output_length": 5}\n'


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "trace") -> Path:
        (tmp_path / name).write_bytes(text.encode())
        return tmp_path / name

    return write


@pytest.mark.parametrize("before", ["", "\ufeff", "\n\n", " \r\n"], ids=["", "BOM", "lines", "blank"])
@pytest.mark.parametrize(
    ("text", "form"),
    [
        (MOONCAKE, "mooncake"), (BAILIAN, "bailian"), (BURSTGPT, "burstgpt"), (AZURE, "azure"), (SHAREGPT, "sharegpt"),
        (SHAREGPT.replace("[{", "[\n  {", 1), "sharegpt"), (SHAREGPT[1:-1], "sharegpt"), (GUIDELLM, "mooncake"),
        ("Session ID,Timestamp,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type", "burstgpt"),
        ("ContextTokens, GeneratedTokens, TIMESTAMP\r\n", "azure"), ("", "mooncake"), ("a,b,c", "mooncake"),
    ],
)  # fmt: skip
def test_the_form_is_found_from_the_file(file, text, form, before):
    assert form_of(file(before + text)) == form


def test_bailians_blocks_have_16_tokens_and_its_times_are_seconds(file):
    lines = read_trace(file(BAILIAN)).lines
    one, other = (list(tokens_of(line)) for line in lines)
    assert ([line.due for line in lines], len(one), len(other)) == ([0, 1.25], 70, 100)
    assert one == other[:70]  # the fifth block holds 6 of its 16 tokens in the first


def test_azures_times_have_seven_digits_or_a_time_zone(file):
    found = read_trace(file(AZURE)).lines
    assert [(line.number, line.input_length, line.output_length) for line in found] == [(2, 374, 44), (3, 396, 109)]
    assert found[1].due == pytest.approx(0.052, abs=1e-6)
    later = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10T00:00:01Z,9,5\n"
    )
    assert read_trace(file(later)).lines[1].due == pytest.approx(0.99007, abs=1e-6)


def test_burstgpts_failed_requests_are_left_out_and_told(file):
    found = read_trace(file(BURSTGPT))
    assert [(line.due, line.input_length, line.output_length) for line in found.lines] == [
        (0, 472, 18),
        (113, 417, 276),
    ]
    assert found.notes == ("left out 1 of 3 rows, because they have no output tokens",)


@pytest.mark.parametrize("blank", ["", " ", "0", "0.0"])
def test_a_blank_output_is_no_output(file, blank):
    rows = f"2023-11-16 18:17:03,7,{blank}\r\n\r\n2023-11-16 18:17:05,472.0,9\r\n"
    found = read_trace(file("TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + rows))
    assert [(line.number, line.input_length) for line in found.lines] == [(4, 472)]
    assert found.notes == ("left out 1 of 2 rows, because they have no output tokens",)


@pytest.mark.parametrize("output", ["0", "null", '""', "0.0"])
def test_the_same_in_lines_of_json(file, output):
    found = read_trace(file(MOONCAKE + f'{{"timestamp": 1, "input_length": 0, "output_length": {output}}}\n'))
    assert len(found.lines) == 1 and found.lines[0].due == 0
    assert found.notes[0] == "left out 1 of 2 rows, because they have no output tokens"


def test_what_is_beside_the_columns_is_ignored_and_quotes_are_csvs(file):
    text = 'Timestamp,"Request tokens",Note,Response tokens\n1.5,"8","two\nlines, a ""comma""",9\n2,7,x,6,more\n'
    assert [(line.number, line.input_length, line.due) for line in read_trace(file(text)).lines] == [
        (3, 8, 0),
        (4, 7, 0.5),
    ]


BAD = [
    (AZURE + "2023-11-16 18:17:09,x,3\n", "trace:4: ContextTokens: expected from 0 to 999,999,999 tokens, got 'x'."),
    (
        AZURE + "2023-11-16 18:17:09,3,-1\n",
        "trace:4: GeneratedTokens: expected from 0 to 999,999,999 tokens, got '-1'.",
    ),
    (AZURE + "2023-11-16 18:17:09,3,1.5\n", "trace:4: GeneratedTokens: expected"),
    (AZURE + "2023-11-16 18:17:09,0,5\n", "trace:4: ContextTokens: expected from 1 to 1,000,000,000 tokens, got 0."),
    (AZURE + "2023-11-16 18:17:09,,5\n", "trace:4: ContextTokens: expected from 0 to 999,999,999 tokens, got ''."),
    (AZURE + "yesterday,3,5\n", "trace:4: TIMESTAMP: expected a date and time, got 'yesterday'."),
    (AZURE + "17.5,3,5\n", "trace:4: TIMESTAMP: expected a date and time, got '17.5'."),
    (AZURE + "2023-11-16 18:17:09,3\n", "trace:4: 2 columns, expected 3 or more, as in the header."),
    (BURSTGPT + "soon,m,3,5,8,l\n", "trace:5: Timestamp: expected seconds, got 'soon'."),
    (BURSTGPT + "inf,m,3,5,8,l\n", "trace:5: Timestamp: expected seconds, got 'inf'."),
    (BURSTGPT + '6,m,3,"5,8,l\n', "trace:5: not CSV: unexpected end of data."),
    (BURSTGPT + "6,m,3," + "5" * 10_000 + ",8,l\n", "trace:5: Response tokens: expected from 0 to 999,999,999 tokens,"),
    (BURSTGPT[:69], "trace: holds no requests. A line is {"),
    (BURSTGPT.replace(",18,", ",0,").replace(",276,", ",,"), "holds no requests: none of 3 rows has output tokens."),
    (
        BAILIAN.replace("[11,", "[10, 11,"),
        "trace:1: hash_ids: 6 blocks of 16 tokens are more than input_length 70. Set trace_",
    ),
    ("a,b,c\n1,2,3\n", "trace:1: not JSON. A line is {"),
    ('"' + "a" * 200_000, "trace:1: not JSON. A line is {"),
    (BURSTGPT + "1e300,m,3,5,8,l\n", "trace:5: its time 1e+300 is more than 10 years after that of line 2, 5."),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=lambda value: value[-30:].strip()[:20])
def test_a_mistake_is_one_line_that_names_line_and_column(file, text, message):
    with pytest.raises(ToolkitError) as caught:
        read_trace(file(text))
    path, _, said = str(caught.value).rpartition("/")
    assert message in said and path == str(file(text).parent)
    assert "\n" not in said and len(said) < 330


def test_a_form_that_is_given_is_taken_at_its_word(file):
    with pytest.raises(ToolkitError, match=r"trace:1: no column TIMESTAMP, .*, which trace_form azure needs"):
        read_trace(file(BURSTGPT), form="azure")
    with pytest.raises(ToolkitError, match=r"trace:1: not JSON"):
        read_trace(file(BURSTGPT), form="mooncake")
    assert [line.due for line in read_trace(file(GUIDELLM + GUIDELLM.replace("0.5", "2")), form="guidellm").lines] == [
        0,
        1.5,
    ]


def test_text_that_is_not_utf8(file, tmp_path):
    (tmp_path / "trace").write_bytes(AZURE.encode() + b"2023-11-16 18:17:09,\xff,3\n")
    with pytest.raises(ToolkitError, match=r"trace:\d: not UTF-8 text"):
        read_trace(tmp_path / "trace")


def test_blocks_that_do_not_fit_name_the_known_sizes(file):
    """A trace of blocks of 16 whose lines do not say whose it is."""
    plain = BAILIAN.replace('"chat_id": 1, ', "").replace('"chat_id": 2, ', "")
    with pytest.raises(
        ToolkitError,
        match=r"5 blocks of 512 .* input_length 70\. Set trace_block_tokens .*: 512 in Moonc.* 16 in Bai.*vLLM",
    ):
        read_trace(file(plain))
    lines = read_trace(file(plain), form="guidellm", block_tokens=16).lines
    one, other = (list(tokens_of(line)) for line in lines)
    assert one == other[:70]


def test_a_block_that_is_too_small_is_told(file):
    """14 blocks of 512 tokens name 224 of 6955 when they are taken for 16 each."""
    text = json.dumps({"timestamp": 0, "input_length": 6955, "output_length": 5, "hash_ids": list(range(14))})
    assert read_trace(file(text)).notes == ()
    (note,) = read_trace(file(text), block_tokens=16).notes
    assert note == "hash_ids name only 14 of 435 blocks of 16 tokens: check trace_block_tokens"


@pytest.mark.parametrize(("text", "rate"), [(BAILIAN, 0.8), (BURSTGPT, 1 / 113), (AZURE, 1 / 0.052)])
def test_a_plan_takes_them(deployment, file, text, rate):
    traffic = traffic_of(deployment(trace=str(file(text))))
    assert traffic.rate == pytest.approx(rate, rel=1e-4) and len(traffic.requests) == 2
    assert traffic.shares_prefixes == (text is BAILIAN) and len(traffic.notes) == (text is BURSTGPT)


def test_a_plan_takes_their_lengths_at_other_times(deployment, file):
    trace = str(file(AZURE * 1))
    constant = traffic_of(deployment(trace=trace, arrivals="constant", rate=2))
    assert [(r.due, len(r.prompt), r.output_tokens) for r in constant.requests] == [(0.5, 374, 44), (1, 396, 109)]
    closed = traffic_of(deployment(trace=trace, arrivals="closed", users=3))
    assert (closed.users, closed.rate, len(closed.requests)) == (3, None, 2)


@pytest.mark.parametrize("keys", [{}, {"arrivals": "constant", "rate": 2}, {"arrivals": "closed", "users": 2}])
@pytest.mark.parametrize("text", [BAILIAN, BURSTGPT, AZURE])
def test_a_load_test_takes_them(plan, file, text, keys):
    found = plan(trace=str(file(text)), **keys)
    assert (found.workload.kind, found.count, found.users) == ("trace", 2, keys.get("users"))
    assert found.contents.outputs == {BAILIAN: [20, 12], BURSTGPT: [18, 276], AZURE: [44, 109]}[text]
    assert [found[n].prompt_tokens for n in range(2)] == {BAILIAN: [70, 100], BURSTGPT: [472, 417], AZURE: [374, 396]}[
        text
    ]
    if text is BAILIAN:
        assert found[1].prompt.startswith(found[0].prompt)
    if keys.get("rate"):
        assert list(found.dues) == [0.5, 1]


def test_a_shape_sends_the_requests_again_from_the_first(plan, file):
    found = plan(trace=str(file(AZURE)), arrivals="constant", stages=[{"rate": 5, "seconds": 1}])
    assert [found[n].max_tokens for n in range(found.count)] == [44, 109, 44, 109, 44]


def test_a_plan_tells_what_it_left_out(deployment, file):
    config = deployment(trace=str(file(BURSTGPT))).file
    assert "left out 1 of 3 rows, because they have no output tokens" in " ".join(
        toolkit("plan", config).stdout.split()
    )
    planned = json.loads(toolkit("plan", config, "--json").stdout)
    (found,) = _named("notes", planned)
    assert found == ["left out 1 of 3 rows, because they have no output tokens"]


def _named(name: str, value: object) -> list:
    """All values of that name in JSON."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value[name]] if isinstance(value, dict) and name in value else []
    return own + [found for part in inner for found in _named(name, part)]


def test_blocks_mean_nothing_where_no_row_names_any(tmp_path):
    file = tmp_path / "burst.csv"
    file.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,47,18,65,x\n")
    with pytest.raises(
        ToolkitError, match=r"burst.csv: trace_block_tokens: has no effect: a file of the form burstgpt"
    ):
        read_trace(file, block_tokens=16)
