"""The dashboards are JSON in Grafana's form, and hold each panel's queries, which test_real.py runs."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="needs the extra monitor")

from tests import commands
from tests.monitor.deployments import rehearsal
from toolkit.monitor.panels import DASHBOARDS


def test_each_dashboard_is_written_whole(tmp_path):
    done = commands.toolkit("monitor", rehearsal(tmp_path).file, "--dashboards", tmp_path / "grafana")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(DASHBOARDS)
    for name, panels in DASHBOARDS.items():
        board = json.loads((tmp_path / "grafana" / f"toolkit-{name}.json").read_text())
        assert (board["uid"], board["title"]) == (f"toolkit-{name}", f"toolkit: {name}")
        shown = {panel["title"]: panel for panel in board["panels"]}
        assert list(shown) == [panel.title for panel in panels]
        for panel in panels:
            made = shown[panel.title]
            assert [(query["expr"], query["legendFormat"]) for query in made["targets"]] == list(panel.queries)
            assert made["fieldConfig"]["defaults"]["unit"] == panel.unit
            assert len({query["refId"] for query in made["targets"]}) == len(panel.queries)
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)
