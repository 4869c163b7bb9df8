"""`monitoring` in the YAML, and what `toolkit up` does where a watching part cannot be started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.monitor.deployments import rehearsal
from tests.ports import free_port
from toolkit.errors import ToolkitError
from toolkit.gateway.places import Places
from toolkit.monitor import packages, prometheus
from toolkit.up.dry_run import dry_run
from toolkit.up.events import Events
from toolkit.up.watching import watch_parts


@pytest.mark.parametrize(
    ("monitoring", "said"),
    [
        ({"exporter_port": 8002}, "monitoring.exporter_port: 8002 is serving.metrics_port of replica 0"),
        ({"exporter_port": 8012}, "monitoring.exporter_port: 8012 is serving.metrics_port of replica 1"),
        ({"prometheus_port": 8080}, "monitoring.prometheus_port: 8080 is gateway.port"),
        ({"prometheus_port": 9480}, "monitoring.prometheus_port: 9480 is monitoring.exporter_port"),
        ({"prometheus": "on"}, "monitoring.prometheus: input should be 'auto' or 'off', got 'on'"),
        ({"retention_days": 0}, "monitoring.retention_days: input should be greater than or equal to 1, got 0"),
        ({"port": 1}, "monitoring.port: unknown key"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, monitoring, said):
    with pytest.raises(ToolkitError) as caught:
        rehearsal(tmp_path, monitoring=monitoring)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path, tmp_path, 1, 2)


def events(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_without_prometheus_it_goes_on_and_says_how_to_get_it(tmp_path, places, monkeypatch):
    monkeypatch.setattr(prometheus, "find", lambda: None)
    parts = watch_parts(rehearsal(tmp_path), places, {}, Events(tmp_path))
    assert [part.part.name for part in parts] in (["exporter"], [])
    (event,) = [event for event in events(tmp_path) if event["part"] == "prometheus"]
    assert event["cause"] == "it is not installed" and "apt-get install prometheus" in event["action"]


def test_without_prometheus_client_there_is_no_exporter(tmp_path, places, monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda module: False)
    assert watch_parts(rehearsal(tmp_path, monitoring={"prometheus": "off"}), places, {}, Events(tmp_path)) == ()
    assert "prometheus-client is not installed" in events(tmp_path)[0]["cause"]


def test_a_taken_port_of_prometheus_is_an_event(tmp_path, places, monkeypatch, taken_port):
    monkeypatch.setattr(prometheus, "find", lambda: Path("/usr/bin/prometheus"))
    deployment = rehearsal(tmp_path, monitoring={"prometheus_port": taken_port, "exporter": False})
    assert watch_parts(deployment, places, {}, Events(tmp_path)) == ()
    assert f"monitoring.prometheus_port: {taken_port} on 127.0.0.1 cannot be used" in events(tmp_path)[0]["cause"]


def test_prometheus_gets_its_files(tmp_path, places, monkeypatch):
    monkeypatch.setattr(prometheus, "find", lambda: Path("/usr/bin/prometheus"))
    deployment = rehearsal(tmp_path, monitoring={"prometheus_port": free_port(), "exporter": False})
    (part,) = watch_parts(deployment, places, {}, Events(tmp_path))
    assert part.part.name == "prometheus" and part.part.phase == "waiting"
    assert {file.name for file in places.prometheus.iterdir()} == {"prometheus.yml", "rules.yml", "alerts.yml"}


def test_a_dry_run_has_the_exporter_and_prometheus_files(tmp_path):
    text = dry_run(rehearsal(tmp_path))
    assert "-m toolkit.monitor " in text and "SloBurnFast" in text and "--storage.tsdb.retention.time=15d" in text
    text = dry_run(rehearsal(tmp_path, monitoring={"exporter": False, "prometheus": "off"}))
    assert "toolkit.monitor" not in text and "SloBurnFast" not in text
