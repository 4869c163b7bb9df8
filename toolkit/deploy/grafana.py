"""Grafana next to a deployment: our dashboards and their source of data, as files that Grafana reads when it starts.

Source: https://grafana.com/docs/grafana/latest/administration/provisioning/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.monitor import packages
from toolkit.monitor.panels import DASHBOARDS
from toolkit.monitor.prometheus import INTERVAL

IMAGE = "grafana/grafana:11.6.0"
PROMETHEUS_IMAGE, ALERTMANAGER_IMAGE = "prom/prometheus:v2.53.3", "prom/alertmanager:v0.27.0"
"""Their programs are copied into the toolkit's image, where `toolkit up` finds and starts them."""
FOLDER = "grafana"
INSIDE = "/toolkit"
"""Where the container sees the dashboards."""
SETTINGS = {
    "GF_SERVER_HTTP_ADDR": "127.0.0.1",
    "GF_AUTH_ANONYMOUS_ENABLED": "true",
    "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
    "GF_AUTH_DISABLE_LOGIN_FORM": "true",
    "GF_AUTH_BASIC_ENABLED": "false",
    "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
    "GF_ANALYTICS_REPORTING_ENABLED": "false",
    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
    "GF_NEWS_NEWS_FEED_ENABLED": "false",
    "GF_PLUGINS_PREINSTALL_DISABLED": "true",
}
"""Whoever reaches loopback may look, nobody may change, and nothing is asked of the Internet."""


def _is_wanted(deployment: Deployment) -> bool:
    return deployment.monitoring.prometheus == "auto"


def values(deployment: Deployment) -> dict[str, Any]:
    """What the templates need: `grafana`, and `programs` with the image that has each; both empty without them."""
    if not _is_wanted(deployment):
        return {"grafana": {}, "programs": {}}
    programs = {"prometheus": PROMETHEUS_IMAGE}
    if deployment.monitoring.alert_webhook:
        programs["alertmanager"] = ALERTMANAGER_IMAGE
    return {"grafana": {"image": IMAGE, "settings": SETTINGS, "inside": INSIDE}, "programs": programs}


def files(deployment: Deployment) -> Mapping[str, str]:
    """The files by their paths; none with monitoring.prometheus: off.

    Raises ToolkitError if the package that makes dashboards is not installed.
    """
    if not _is_wanted(deployment):
        return {}
    packages.require(packages.DASHBOARDS)
    from toolkit.monitor.dashboards import dashboard_json

    source = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://127.0.0.1:{deployment.monitoring.prometheus_port}",
        "isDefault": True,  # our dashboards name no source, and so take this one
        "editable": False,
        "jsonData": {"timeInterval": INTERVAL, "httpMethod": "POST"},
    }
    provider = {
        "name": "toolkit",
        "type": "file",
        "folder": "toolkit",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "options": {"path": f"{INSIDE}/dashboards"},
    }
    provisioning = {
        "datasources/prometheus.yaml": {"apiVersion": 1, "datasources": [source]},
        "dashboards/toolkit.yaml": {"apiVersion": 1, "providers": [provider]},
    }
    texts = {f"provisioning/{name}": yaml.safe_dump(one, sort_keys=False) for name, one in provisioning.items()}
    texts |= {f"dashboards/toolkit-{name}.json": dashboard_json(name, one) for name, one in DASHBOARDS.items()}
    return {f"{FOLDER}/{name}": text for name, text in texts.items()}
