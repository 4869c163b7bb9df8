"""Alertmanager gets a configuration that its own program accepts, and its place in `toolkit up`."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitor.deployments import rehearsal
from tests.monitor.test_alerts import needs_promtool, promtool
from tests.ports import free_port
from tests.waiting import eventually
from toolkit.errors import ToolkitError
from toolkit.gateway.places import Places
from toolkit.monitor import alertmanager, prometheus
from toolkit.monitor.alerts import Alert, alerts
from toolkit.up.dry_run import dry_run
from toolkit.up.events import Events
from toolkit.up.watching import watch_parts

AMTOOL = shutil.which("amtool")
HOOK = "https://alerts.example/hook?key=secret"


def watched(folder: Path, **monitoring):
    return rehearsal(folder, monitoring={"exporter": False, "alert_webhook": HOOK, **monitoring})


@pytest.mark.skipif(AMTOOL is None, reason=f"needs amtool: {alertmanager.INSTALL}")
def test_amtool_takes_the_file(tmp_path):
    alertmanager.write_files(watched(tmp_path), tmp_path)
    file = tmp_path / alertmanager.CONFIG
    done = subprocess.run([str(AMTOOL), "check-config", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "2 inhibit rules" in done.stdout, done.stdout + done.stderr
    routes = [str(AMTOOL), "config", "routes", "test", f"--config.file={file}", "severity=page"]
    assert subprocess.run(routes, capture_output=True, text=True, timeout=60).stdout.strip() == "webhook"


@pytest.mark.skipif(alertmanager.find() is None, reason=f"needs Alertmanager: {alertmanager.INSTALL}")
def test_a_webhook_gets_a_page_and_its_end_but_not_what_follows_from_it(tmp_path, webhook):
    """A real Alertmanager, with shorter waits. The alerts are posted as Prometheus posts them."""
    deployment = watched(tmp_path, alert_webhook=webhook.url, alertmanager_port=free_port())
    content = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", alertmanager.text(deployment))
    (tmp_path / alertmanager.CONFIG).write_text(content)
    command = alertmanager.command(alertmanager.find(), deployment, tmp_path)
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        names = {alert.name: alert for alert in alerts(deployment)}
        down, queue = (post_of(names[name], replica="1") for name in ("ReplicaDown", "QueueGrowing"))
        url = f"http://127.0.0.1:{deployment.monitoring.alertmanager_port}/api/v2/alerts"
        eventually(lambda: post(url, [down, queue]))
        firing = ("ReplicaDown", "firing", "replica {{ $labels.replica }} takes no requests")
        eventually(lambda: webhook.heard == [firing])
        assert states(url) == {"ReplicaDown": "active", "QueueGrowing": "suppressed"}
        past = datetime.now(UTC) - timedelta(seconds=1)
        assert post(url, [{**down, "endsAt": past.isoformat()}])
        eventually(
            lambda: {("ReplicaDown", "resolved"), ("QueueGrowing", "firing")} <= {one[:2] for one in webhook.heard}
        )
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -9, (tmp_path / "log").read_text()


def post_of(alert: Alert, **labels: str) -> dict[str, Any]:
    content = alert.as_yaml()
    return {"labels": {"alertname": alert.name, **content["labels"], **labels}, "annotations": content["annotations"]}


def post(url: str, content: list[dict[str, Any]]) -> bool:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status == 200


def states(url: str) -> dict[str, str]:
    """What Alertmanager does with each alert: active, or suppressed because it follows from another one."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return {one["labels"]["alertname"]: one["status"]["state"] for one in json.load(answer)}


class Webhook:
    """Remembers (alert, status, summary) of what is sent to it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for one in content["alerts"]:
                    heard.append((one["labels"]["alertname"], one["status"], one["annotations"]["summary"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@needs_promtool
def test_prometheus_sends_it_the_alerts(tmp_path):
    deployment = watched(tmp_path, alertmanager_port=9999)
    prometheus.write_files(deployment, 1, tmp_path)
    promtool("check", "config", tmp_path / prometheus.CONFIG)
    content = yaml.safe_load((tmp_path / prometheus.CONFIG).read_text())
    [manager] = content["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["127.0.0.1:9999"]}]
    assert "alerting" not in prometheus.scrape_config(rehearsal(tmp_path), 1)


def test_every_alert_that_it_names_is_one_of_ours(tmp_path):
    names = {alert.name for alert in alerts(watched(tmp_path))}
    assert {*alertmanager.FOLLOW, *(name for effects in alertmanager.FOLLOW.values() for name in effects)} <= names


def test_toolkit_up_starts_it_with_a_file_that_others_cannot_read(tmp_path, monkeypatch):
    for module in (prometheus, alertmanager):
        monkeypatch.setattr(module, "find", lambda: Path("/usr/bin/true"))
    deployment = watched(tmp_path, prometheus_port=free_port(), alertmanager_port=free_port())
    places = Places(tmp_path, tmp_path, 1, 2)
    parts = watch_parts(deployment, places, {}, Events(tmp_path))
    assert [part.part.name for part in parts] == ["prometheus", "alertmanager"]
    file = places.prometheus / alertmanager.CONFIG
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and HOOK in file.read_text()


def test_where_it_is_not_installed_an_event_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(prometheus, "find", lambda: Path("/usr/bin/true"))
    monkeypatch.setattr(alertmanager, "find", lambda: None)
    deployment = watched(tmp_path, prometheus_port=free_port())
    parts = watch_parts(deployment, Places(tmp_path, tmp_path, 1, 2), {}, Events(tmp_path))
    assert [part.part.name for part in parts] == ["prometheus"]
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert event["action"] == "install it: apt-get install prometheus-alertmanager"


def test_a_dry_run_has_its_file_and_command(tmp_path):
    text = dry_run(watched(tmp_path))
    assert HOOK in text and "--cluster.listen-address=" in text and "127.0.0.1:9493" in text
    assert "alertmanager" not in dry_run(rehearsal(tmp_path))


@pytest.mark.parametrize(
    ("monitoring", "said"),
    [
        ({"alert_webhook": "alerts.example"}, "monitoring.alert_webhook: "),
        (
            {"prometheus": "off"},
            "monitoring.alert_webhook: needs Prometheus, and monitoring.prometheus is off. Use auto.",
        ),
        ({"alertmanager_port": 9490}, "monitoring.alertmanager_port: 9490 is monitoring.prometheus_port"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, monitoring, said):
    with pytest.raises(ToolkitError) as caught:
        watched(tmp_path, **monitoring)
    assert said in str(caught.value) and "\n" not in str(caught.value)
