"""After `restart --with` or `tune --apply` the exporter and Prometheus judge by the settings that the replicas run."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.monitor.deployments import rehearsal
from tests.monitor.test_real import needs_prometheus
from tests.monitor.test_watcher import FRONT, FRONT_URL, REPLICA_0, World, engine_page, look
from tests.ports import free_port
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.gateway.door import DoorState, folder, only_one, read_door, write_door
from toolkit.gateway.places import Places
from toolkit.monitor import watcher as watcher_module
from toolkit.monitor.page import Page
from toolkit.monitor.subject import Served
from toolkit.monitor.watcher import Watcher
from toolkit.up.events import Events
from toolkit.up.supervisor import Supervisor
from toolkit.up.watching import follow, watch_parts

TTFT = {"target": "ttft_p50", "protocol": "triton"}


class Plan:
    """In the place of a plan, which takes seconds: predicts as many requests/s as the YAML has sequences."""

    made: list[Plan]

    def __init__(self, deployment: Deployment) -> None:
        self.sequences, self.open = deployment.limits.max_sequences, True
        Plan.made.append(self)

    def fill(self, page: Page) -> None:
        page.set("toolkit_predicted_requests_per_second", self.sequences)

    def close(self) -> None:
        self.open = False


def runs(deployment: Deployment, file: Path, takeovers: int) -> None:
    """Write the state that `toolkit up` writes while its replicas run this YAML."""
    state = DoorState(os.getpid(), "ready", time.time(), "http://x", (), "", running=str(file), takeovers=takeovers)
    write_door(deployment, state)


def changed(deployment: Deployment, name: str, **sections: object) -> Path:
    file = deployment.file.with_name(name)
    file.write_text(yaml.safe_dump({**yaml.safe_load(deployment.file.read_text()), **sections}))
    return file


@pytest.fixture
def up(tmp_path, monkeypatch) -> Iterator[Deployment]:
    monkeypatch.setattr(watcher_module, "Predictions", Plan)
    Plan.made = []
    deployment = rehearsal(tmp_path)
    with only_one(deployment):
        runs(deployment, deployment.file, 0)
        yield deployment


SMALLER = {"max_sequences": 4, "max_num_tokens": 256, "max_seq_len": 256}


def test_the_exporter_follows_what_the_replicas_run(up):
    world = World()
    world.pages[REPLICA_0] = engine_page(within=90, requests=100)
    watcher = Watcher(up, {FRONT: FRONT_URL}, world.read, lambda: world.now)
    page = look(watcher, world)
    assert page.get("toolkit_predicted_requests_per_second") == 8
    assert page.get("toolkit_slo_limit_seconds", target="ttft_p50", metric="ttft", quantile="0.5") == 0.5
    before = page.get("toolkit_slo_requests_total", **TTFT)

    file = changed(up, "new.yaml", limits=SMALLER, slo={"ttft_ms": {"p50": 2000}}, output="elsewhere")
    runs(up, file, 1)
    page = look(watcher, world)
    assert page.get("toolkit_predicted_requests_per_second") == 4
    assert [label["target"] for label, _ in page.of("toolkit_slo_limit_seconds")] == ["ttft_p50"]
    assert page.get("toolkit_slo_limit_seconds", target="ttft_p50", metric="ttft", quantile="0.5") == 2
    assert page.get("toolkit_slo_requests_total", **TTFT) == before
    assert page.get("toolkit_kv_cache_reused_blocks_total", replica=0) == 7
    (info,) = [labels for labels, _ in page.of("toolkit_exporter_info")]
    assert info["deployment"] == up.name, "its readers look for the one that is up"

    changed(up, "new.yaml", slo={"ttft_ms": {"p50": 250}})  # the same YAML, changed and taken over again
    assert look(watcher, world).get("toolkit_slo_limit_seconds", target="ttft_p50", metric="ttft", quantile="0.5") == 2
    runs(up, file, 2)
    page = look(watcher, world)
    assert page.get("toolkit_slo_limit_seconds", target="ttft_p50", metric="ttft", quantile="0.5") == 0.25
    assert [plan.open for plan in Plan.made] == [False, False, True], "each plan is computed once, and closed"
    watcher.close()


def test_good_requests_never_become_fewer_under_a_tighter_limit(up):
    """To Prometheus a counter that falls is a restart. Requests from before count by the limit of their time."""
    world = World()
    world.pages[REPLICA_0] = engine_page(within=90, requests=100)
    watcher = Watcher(up, {}, world.read, lambda: world.now)
    counted = [look(watcher, world).get("toolkit_slo_good_requests_total", **TTFT)]
    for takeover, limit in enumerate((2000, 250, 500), start=1):
        runs(up, changed(up, "new.yaml", slo={"ttft_ms": {"p50": limit}}), takeover)
        counted.append(look(watcher, world).get("toolkit_slo_good_requests_total", **TTFT))
        world.pages[REPLICA_0] = engine_page(within=90 + 10 * takeover, requests=100 + 10 * takeover)
        counted.append(look(watcher, world).get("toolkit_slo_good_requests_total", **TTFT))
    # Each time 10 requests come within half a second. Linear in the bucket up to 0.5 s, half of them take 0.25 s.
    assert counted == [90, 90, 100, 100, 105, 105, 115]
    watcher.close()


def test_a_yaml_that_is_gone_changes_nothing(up):
    world = World()
    watcher = Watcher(up, {}, world.read, lambda: world.now)
    runs(up, up.file.with_name("gone.yaml"), 1)
    for _ in range(2):
        assert look(watcher, world).get("toolkit_predicted_requests_per_second") == 8
    watcher.close()


def test_the_page_groups_ranks_by_the_stages_that_run(up):
    subject = Served(up)
    assert subject.tp == 2
    runs(up, changed(up, "new.yaml", parallel={"replicas": 2, "pp": 2}), 1)
    assert subject.tp == 1


def test_the_state_stays_where_its_readers_look(up, tmp_path):
    """Also if the other YAML has an output of its own."""
    new = load_deployment(changed(up, "new.yaml", output=str(tmp_path / "elsewhere")))
    supervisor = Supervisor(up, Places(tmp_path, folder(up), 1, 2), {}, Events(folder(up)))
    try:
        supervisor.serves(new)
        state = read_door(up)
    finally:
        supervisor._commands.close()
    assert state and (state.running, state.takeovers) == (str(new.file), 1)
    assert not (tmp_path / "elsewhere").exists()


@needs_prometheus
def test_prometheus_takes_the_new_targets(tmp_path):
    monitoring = {"exporter": False, "prometheus_port": free_port()}
    deployment = rehearsal(tmp_path, monitoring=monitoring)
    places, events = Places(tmp_path, tmp_path, 1, 2), Events(tmp_path)
    (part,) = parts = watch_parts(deployment, places, dict(os.environ), events)

    def burns() -> set[str]:
        url = f"http://127.0.0.1:{deployment.monitoring.prometheus_port}/api/v1/rules?type=alert"
        with urllib.request.urlopen(url, timeout=10) as answer:
            groups = json.load(answer)["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"] if rule["name"] == "SloBurnFast"]
        return {rule["annotations"]["summary"].partition("miss ")[2] for rule in rules}

    try:
        part.look()
        eventually(lambda: burns() == {"ttft_p50 (0.5 s)", "ttft_p99 (1.5 s)", "itl_p99 (0.1 s)"})
        follow(parts, load_deployment(changed(deployment, "new.yaml", slo={"ttft_ms": {"p99": 900}})), places, events)
        eventually(lambda: burns() == {"ttft_p99 (0.9 s)"})
        assert part.part.alive
    finally:
        part.part.kill()
        part.part.process.wait()
        part.part.close()
