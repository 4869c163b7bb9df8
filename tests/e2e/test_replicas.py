"""Two replicas of two ranks each, from one YAML: both answer, one goes on alone, and nothing is left."""

import dataclasses
import json
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.ports import free_ports

from .group import Group, command, left_of, processes_of, succeed, toolkit, wait_for, write_yaml
from .marks import no_group

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("served"), no_group]


@dataclasses.dataclass(frozen=True)
class Replica(Group):
    """One of the two: its ports are 10 apart from those of the other."""

    number: int

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.content['serving']['http_port'] + 10 * self.number}"

    @property
    def run_dir(self) -> Path:
        return super().run_dir / f"replica{self.number}"


@pytest.fixture
def two(tmp_path, tiny_llama):
    """The YAML of two replicas, built and not served, and both of them."""
    file = write_yaml(tmp_path, tiny_llama, tp=2, pp=1)
    content = yaml.safe_load(file.read_text())
    http, grpc, metrics = free_ports(replicas=2)
    content["parallel"]["replicas"] = 2
    content["serving"] |= {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    file.write_text(yaml.safe_dump(content))
    for name in ("build", "repo"):
        succeed(name, file)
    yield file, [Replica(file, number) for number in (0, 1)]
    toolkit("stop", file)


def test_two_replicas_from_start_to_end(two, truth):
    file, replicas = two
    expected = truth.text(truth.greedy(truth.ids("Tyger Tyger"), 20))

    def answers(replica: Replica) -> bool:
        return replica.ask(text_input="Tyger Tyger", max_tokens=20)["text_output"] == expected

    ready = succeed("serve --detach", file)
    assert ready.count("ready: ") == 2 and ready.count("next: ") == 1
    assert all(map(answers, replicas))
    assert succeed("status", file).startswith("ready: 2 of 2 replicas\n")

    report = json.loads(succeed("loadtest", file, "--users", "4", "--requests", "16", "--no-self-check", "--json"))
    counts = report["run"]["requests_per_replica"]
    assert len(counts) == 2 and sum(counts) == 16 and min(counts) > 0

    first, second = (replica.run_id for replica in replicas)
    victim = next(one for one in processes_of(second) if one.environ().get("OMPI_COMM_WORLD_RANK") == "1")
    victim.kill()
    wait_for(lambda: not left_of(second), "the rest of replica 1 ended")
    assert answers(replicas[0])
    assert toolkit("ask", file, "Tyger Tyger", "--raw", "--max-tokens", "20").stdout == f"{expected}\n"
    degraded = toolkit("status", file)
    assert degraded.returncode == 1 and degraded.stdout.startswith("ready: 1 of 2 replicas\n")
    assert "rank 1 was killed by SIGKILL" in degraded.stdout
    refused = toolkit("loadtest", file)
    assert refused.returncode == 3 and "replica 1 of 2 is not ready" in refused.stdout

    assert succeed("serve --detach", file).count("ready: ") == 1, "the other one goes on meanwhile"
    assert (replicas[0].run_id, answers(replicas[1])) == (first, True)
    stopped = succeed("stop", file).splitlines()
    assert [line.startswith(f"replica {number}: stopped process") for number, line in enumerate(stopped)] == [True] * 2
    assert left_of(first) == left_of(second) == left_of(replicas[1].run_id) == []


def test_kill_9_of_what_serves_both(two):
    file, replicas = two
    with file.with_suffix(".stdout").open("w") as output:
        process = subprocess.Popen(command("serve", file), stdout=output, stderr=output)
    wait_for(lambda: "next: " in file.with_suffix(".stdout").read_text(), "both ready", within_s=120)
    runs = [replica.run_id for replica in replicas]
    assert all(map(left_of, runs))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(left_of, runs)), "both drained", within_s=30)
    wait_for(lambda: toolkit("status", file).stdout.startswith("ready: 0 of 2 replicas\n"), "both stopped")
    assert toolkit("status", file).returncode == 3
