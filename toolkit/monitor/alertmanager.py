"""Alertmanager for one deployment: it sends what Prometheus alerts to a webhook, grouped and without repetition."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.files.atomic import private
from toolkit.gateway.places import LOOPBACK
from toolkit.monitor.alerts import PAGE

INSTALL = "apt-get install prometheus-alertmanager"
PROGRAMS = ("prometheus-alertmanager", "alertmanager")
"""The program's name in Debian, and its original name."""
CONFIG = "alertmanager.yml"
RECEIVER = "webhook"
FOLLOW = {
    "GpuLost": ("ReplicaDown", "CanaryFailing", "GpuXid", "OutOfBalance"),
    "ReplicaDown": ("QueueGrowing", "KvPoolFull", "OutOfBalance", "PredictionFarFromMeasured"),
}
"""Alerts that are not sent while another one fires, because they follow from it."""


def find() -> Path | None:
    """The program, if it is installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return Path(program) if program else None


def config(deployment: Deployment) -> dict[str, Any]:
    """The content of alertmanager.yml. Pages are sent at once and again after an hour, tickets after a day."""
    ours = {"group_by": ["alertname"], "group_wait": "30s", "group_interval": "5m"}
    page = {
        "matchers": [f'severity="{PAGE}"'],
        "group_wait": "5s",
        "group_interval": "1m",  # until the same alert of another replica is sent, and the end of this one
        "repeat_interval": "1h",
        "receiver": RECEIVER,
    }
    return {
        "route": {**ours, "repeat_interval": "24h", "receiver": RECEIVER, "routes": [page]},
        "inhibit_rules": [
            {"source_matchers": [f'alertname="{cause}"'], "target_matchers": [f'alertname=~"{"|".join(effects)}"']}
            for cause, effects in FOLLOW.items()
        ],
        "receivers": [
            {
                "name": RECEIVER,
                "webhook_configs": [{"url": deployment.monitoring.alert_webhook, "send_resolved": True}],
            }
        ],
    }


def text(deployment: Deployment) -> str:
    """The text of alertmanager.yml."""
    return yaml.safe_dump(config(deployment), sort_keys=False, width=120)


def write_files(deployment: Deployment, folder: Path) -> None:
    """Write alertmanager.yml into an existing folder. Only its user can read it: a webhook's URL may be a secret."""
    with open(folder / CONFIG, "w", encoding="utf-8", opener=private) as file:
        file.write(text(deployment))


def command(program: Path, deployment: Deployment, folder: Path) -> list[str]:
    """The command that starts it, with its files in `folder`. It joins no cluster of Alertmanagers."""
    return [
        str(program),
        f"--config.file={folder / CONFIG}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={LOOPBACK}:{deployment.monitoring.alertmanager_port}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
