"""Prometheus for one deployment: its files, and how it is started."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.gateway.places import LOOPBACK
from toolkit.monitor.alerts import alerts
from toolkit.monitor.rules import recording_rules

INSTALL = "apt-get install prometheus"
CONFIG, RULES, ALERTS = "prometheus.yml", "rules.yml", "alerts.yml"
INTERVAL = "5s"


def find() -> Path | None:
    """The program, if it is installed."""
    program = shutil.which("prometheus")
    return Path(program) if program else None


def files(deployment: Deployment, front_port: int, worker_ports: Sequence[int] = ()) -> dict[str, str]:
    """The text of each file, by its name. The ports: of Dynamo's front end, and of each replica's worker."""
    contents = {
        CONFIG: scrape_config(deployment, front_port, worker_ports),
        RULES: _group("toolkit", [rule.as_yaml() for rule in recording_rules(deployment)]),
        ALERTS: _group("toolkit alerts", [alert.as_yaml() for alert in alerts(deployment)]),
    }
    return {name: yaml.safe_dump(content, sort_keys=False, width=120) for name, content in contents.items()}


def write_files(deployment: Deployment, front_port: int, folder: Path, worker_ports: Sequence[int] = ()) -> None:
    """Write the files into an existing folder."""
    for name, text in files(deployment, front_port, worker_ports).items():
        (folder / name).write_text(text, encoding="utf-8")


def write_rules(deployment: Deployment, folder: Path) -> None:
    """Write the files with the recording rules and alerts alone. Raises OSError."""
    for name in (RULES, ALERTS):
        (folder / name).write_text(files(deployment, 0)[name], encoding="utf-8")


def scrape_config(deployment: Deployment, front_port: int, worker_ports: Sequence[int] = ()) -> dict[str, Any]:
    """The content of prometheus.yml."""
    jobs = [_job("toolkit", [_targets(deployment.monitoring.exporter_port)])]
    ports = [replica.serving.metrics_port for replica in deployment.here()]
    if ports:
        jobs.append(_job("triton", [_targets(port, replica=str(number)) for number, port in enumerate(ports)]))
    if worker_ports:
        jobs.append(_job("workers", [_targets(port) for port in worker_ports]))
    if deployment.gateway.has_door:
        jobs.append(_job("dynamo", [_targets(front_port)]))
    manager = {"alertmanagers": [{"static_configs": [_targets(deployment.monitoring.alertmanager_port)]}]}
    return {
        **({"alerting": manager} if deployment.monitoring.alert_webhook else {}),
        "global": {
            "scrape_interval": INTERVAL,
            "evaluation_interval": INTERVAL,
            "external_labels": {"deployment": deployment.name},
        },
        "rule_files": [RULES, ALERTS],
        "scrape_configs": jobs,
    }


def command(program: Path, deployment: Deployment, folder: Path) -> list[str]:
    """The command that starts it. `folder` has its files and its time series."""
    monitoring = deployment.monitoring
    return [
        str(program),
        f"--config.file={folder / CONFIG}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--storage.tsdb.retention.time={monitoring.retention_days}d",
        f"--web.listen-address={LOOPBACK}:{monitoring.prometheus_port}",
        "--log.level=warn",
    ]


def _group(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"groups": [{"name": name, "rules": rules}]}


def _job(name: str, targets: list[dict[str, Any]]) -> dict[str, Any]:
    # honor_labels: our models' families name their replica themselves.
    return {"job_name": name, "honor_labels": True, "static_configs": targets}


def _targets(port: int, **labels: str) -> dict[str, Any]:
    return {"targets": [f"{LOOPBACK}:{port}"], **({"labels": labels} if labels else {})}
