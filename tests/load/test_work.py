"""What options make of a workload file."""

import json

import pytest

from toolkit.errors import ToolkitError
from toolkit.load.requests import request_source


@pytest.fixture
def file_of(tmp_path):
    def write(**content: object) -> str:
        (tmp_path / "w.yaml").write_text(json.dumps({"prompt_tokens": 40, "output_tokens": 10, **content}))
        return str(tmp_path / "w.yaml")

    return write


def test_users_make_a_closed_loop_of_any_workload(deployment, tiny_llama, file_of):
    load = deployment(None, model=tiny_llama)
    opened = request_source(load, file_of(rate=5, requests=30))
    assert (opened.users, opened.settings()["loop"], opened.settings()["rate"]) == (
        None,
        "open",
        pytest.approx(5, rel=0.5),
    )
    closed = request_source(load, file_of(requests=30), users=7)
    assert (closed.users, closed.count, closed.settings()["loop"]) == (7, 30, "closed")
    with pytest.raises(ToolkitError, match="a closed loop has no rate"):
        request_source(load, file_of(requests=30), users=7, rate=3)


def test_users_of_what_has_times_of_its_own(deployment, tiny_llama, file_of):
    ramp = {"from": 1, "to": 3, "seconds": 10}
    with pytest.raises(
        ToolkitError, match=r"--users: cannot be combined with a workload that says when each request is sent\."
    ):
        request_source(deployment(None, model=tiny_llama), file_of(ramp=ramp), users=7)


def test_the_same_seed_sends_the_same_and_another_does_not(deployment, tiny_llama, file_of):
    load, file = deployment(None, model=tiny_llama), file_of(rate=50, requests=12)

    def sent(**options: object) -> tuple[list[str], list[float]]:
        work = request_source(load, file, **options)
        return [work.request(n).request.prompt for n in range(12)], [work.due(n) for n in range(12)]

    prompts, dues = sent()
    assert sent() == (prompts, dues)
    slower = sent(rate=25)
    assert slower[0] == prompts and slower[1] == pytest.approx([2 * due for due in dues], rel=0.2)
    other = sent(seed=7)
    assert other[0] != prompts and other[1] != dues


def test_users_of_a_trace(deployment, tiny_llama, tmp_path):
    """One with times says when each request is sent; ShareGPT's conversations have none."""
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": turns}] * 5))
    (tmp_path / "a.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,9,4\n")
    load = deployment(None, model=tiny_llama)
    for trace in ("s.json", "a.csv"):
        (tmp_path / f"{trace}.yaml").write_text(json.dumps({"trace": trace}))
    asked = request_source(load, str(tmp_path / "s.json.yaml"), users=2, requests=3)
    assert (asked.users, asked.count, asked.settings()["loop"]) == (2, 3, "closed")
    assert request_source(load, str(tmp_path / "s.json.yaml"), rate=7).settings()["rate"] == 7
    with pytest.raises(ToolkitError, match="--users: cannot be combined with a workload"):
        request_source(load, str(tmp_path / "a.csv.yaml"), users=2)
