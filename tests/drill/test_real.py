"""Drills of two real replicas of two ranks each behind a real door, by the public commands."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import yaml

from tests.commands import toolkit
from tests.ports import free_port, free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (importlib.util.find_spec("dynamo") and importlib.util.find_spec("envoy")) and not shutil.which("envoy"),
        reason="needs the extra gateway",
    ),
]


GROUP_ENDED = ("a rank of the group has ended", "this server is ending")
"""What its requests are told by the ranks that live, and by Triton's other models where those had no time for it."""


@pytest.fixture(scope="module")
def up(tmp_path_factory, tiny_llama):
    """The YAML of two replicas that are up."""
    folder = tmp_path_factory.mktemp("drill")
    http, grpc, metrics = free_ports(replicas=2)
    content = {
        "engine": "rehearsal",
        "model": {"path": str(tiny_llama), "dtype": "float16"},
        "parallel": {"tp": 2, "pp": 1, "replicas": 2},
        "limits": {"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 512, "max_queue_size": 32},
        "kv_cache": {"max_tokens": 8192},
        "hardware": {"gpu": "none", "gpus": 4},
        "serving": {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "startup_timeout_s": 300},
        "gateway": {"port": free_port()},
        "monitoring": {"exporter": False, "prometheus": "off"},
        "output": str(folder / "out"),
    }
    file = folder / "pair.yaml"
    file.write_text(yaml.safe_dump(content))
    for command in (["build"], ["repo"], ["up", "--detach"]):
        done = toolkit(*command, file)
        assert done.returncode == 0, done.stderr
    yield file
    toolkit("down", file)


def drill(file, *arguments):
    done = toolkit("drill", file, *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    content = json.loads(done.stdout)
    assert (content["verdict"] == "FAIL") == (done.returncode == 1)
    return {drill["name"]: drill for drill in content["drills"]}, done.stderr


def test_a_killed_rank_loses_nothing_and_poison_harms_its_sender_only(up):
    """How long things take depends on the machine: what is lost, cut, wrong and healed does not."""
    drills, errors = drill(up, "poison", "kill-rank", "errors", "--seconds", "4", "--rate", "4")
    assert list(drills) == ["kill-rank", "errors", "poison"], "in the order of the table"
    killed = drills["kill-rank"]
    verdicts = {promise["metric"]: promise["verdict"] for promise in killed["promises"]}
    for metric in ("cut_openai", "wrong", "recover_s"):
        assert verdicts[metric] == "PASS", (killed["measured"], errors)
    lost = [request for request in killed["requests"] if request["outcome"] in ("lost", "refused")]
    # No proxy can send a request of an open gRPC stream again.
    words = [r["error"] for r in lost if r["api"] == "triton-grpc"]
    assert len(words) == len(lost) and all(any(told in error for told in GROUP_ENDED) for error in words), lost
    assert killed["note"].startswith("SIGKILL to rank 1 of replica ")
    assert any(event["event"] == "ended" and event["part"].startswith("replica") for event in killed["events"])
    assert {request["api"] for request in killed["requests"]} == {"openai", "triton-http", "triton-grpc"}
    failed = drills["errors"]
    assert {p["metric"]: p["verdict"] for p in failed["promises"]} == {
        metric: "PASS" for metric in ("sent_again", "lost_http", "cut", "wrong")
    }, failed["measured"]
    told = [request["error"] for request in failed["requests"] if request["outcome"] in ("lost", "refused")]
    assert all("Encountered an error in forwardAsync function" in error for error in told)
    measured = drills["poison"]["measured"]
    assert (measured["not_4xx"], measured["lost"], measured["cut"], measured["wrong"]) == (0, 0, 0, 0), drills["poison"]
    page = (up.parent / "out" / "drill" / "index.html").read_text()
    assert "Requests over time" in page
