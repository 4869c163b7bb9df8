"""docker compose, as it would read the files. No compose is here to ask: the keys are those of its specification."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.deploy.folders import change, check_golden, copied, deployed, refused
from toolkit.config.load import load_deployment
from toolkit.monitor.dashboards import write_dashboards

SERVICE = {
    *(
        "build",
        "command",
        "cpus",
        "deploy",
        "entrypoint",
        "environment",
        "healthcheck",
        "image",
        "init",
        "mem_limit",
        "memswap_limit",
    ),
    *("network_mode", "profiles", "pull_policy", "restart", "shm_size", "stop_grace_period", "ulimits"),
    *("user", "volumes"),
}
"""Keys of a service that are used here. Source: compose-spec/compose-spec, schema/compose-spec.json@b2835e8."""


@pytest.mark.parametrize("name", ["flagship", "pair"])
def test_the_files(tmp_path, name):
    folder = check_golden(name, "compose", tmp_path)
    content = yaml.safe_load((folder / "compose.yaml").read_text())
    assert set(content) == {"name", "x-toolkit", "services"}
    assert set(content["services"]) == {"build", "serve", "grafana", "loadtest", "loadtest-worker"}
    for service in content["services"].values():
        assert set(service) <= SERVICE


def test_its_yaml_is_the_deployment_with_this_machine_s_paths(tmp_path, config):
    change(config, runtime="docker", name="two")
    folder = deployed(config, "compose", tmp_path / "out")
    before, after = load_deployment(config), load_deployment(folder / "two.yaml")
    assert after.runtime.kind == "host"  # it runs inside of the image
    same = {"file": None, "runtime": None}
    assert {**before.model_dump(), **same} == {**after.model_dump(), **same}


def test_the_image_of_a_rehearsal_can_be_named(tmp_path, config):
    change(config, runtime={"kind": "docker", "image": "mine/python:3"})
    assert "\nFROM mine/python:3\n" in (deployed(config, "compose", tmp_path / "out") / "Dockerfile").read_text()


def test_engine_of_the_command_line(tmp_path, config):
    change(config, engine="tensorrt")
    folder = deployed(config, "compose", tmp_path / "out", "--engine", "rehearsal")
    assert load_deployment(next(folder.glob("smollm2*.yaml"))).engine == "rehearsal"


def test_paths_that_mean_something_to_compose_or_a_shell(tmp_path, config):
    output = tmp_path / "it's $HOME: a b"
    change(config, output=str(output))
    content = yaml.safe_load((deployed(config, "compose", tmp_path / "out") / "compose.yaml").read_text())
    volumes = content["services"]["serve"]["volumes"]
    assert str(output) in [one["source"].replace("$$", "$") for one in volumes]


@pytest.mark.parametrize(("name", "limits"), [("flagship", {"memlock", "stack"}), ("pair", {"stack"})])
def test_locked_memory_is_for_gpus_alone(tmp_path, name, limits):
    """A daemon without CAP_SYS_RESOURCE, as without root, cannot lift this limit and starts no container."""
    folder = deployed(copied(name, tmp_path), "compose", tmp_path / "out")
    assert set(yaml.safe_load((folder / "compose.yaml").read_text())["services"]["serve"]["ulimits"]) == limits


def test_a_long_drain_is_waited_for(tmp_path, config):
    change(config, serving={"drain_timeout_s": 300, "startup_timeout_s": 77})
    content = yaml.safe_load((deployed(config, "compose", tmp_path / "out") / "compose.yaml").read_text())
    serve = content["services"]["serve"]
    assert int(serve["stop_grace_period"].removesuffix("s")) >= 2 * 300
    assert serve["healthcheck"]["start_period"] == "77s"


@pytest.mark.parametrize(("code", "healthy"), [(0, True), (1, True), (2, False), (3, False)])
def test_degraded_counts_as_healthy(tmp_path, config, code, healthy):
    content = yaml.safe_load((deployed(config, "compose", tmp_path / "out") / "compose.yaml").read_text())
    kind, script = content["services"]["serve"]["healthcheck"]["test"]
    double = tmp_path / "toolkit"
    double.write_text(f"#!/bin/sh\nexit {code}\n")
    double.chmod(0o755)
    done = subprocess.run(["/bin/sh", "-c", script.replace("$$", "$")], env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert (kind, done.returncode == 0) == ("CMD-SHELL", healthy)


def test_secrets_are_mounted_and_never_copied(tmp_path, config):
    keys = tmp_path / "configs/keys.txt"
    keys.write_text("anna " + 64 * "a")
    change(config, gateway={"keys_file": "keys.txt"})
    folder = deployed(config, "compose", tmp_path / "out")
    assert all(b"anna" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    volumes = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["serve"]["volumes"]
    assert next(one for one in volumes if one["source"] == str(keys))["read_only"] is True


def test_a_fallback_is_mounted_with_what_was_built_for_it(tmp_path, config):
    change(config, parallel={"replicas": 1})
    (tmp_path / "configs/less.yaml").write_text(config.read_text())
    change(config, recovery={"fallback": ["less.yaml"]})
    folder = deployed(config, "compose", tmp_path / "out")
    volumes = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["serve"]["volumes"]
    readable = {volume["source"]: volume.get("read_only", False) for volume in volumes}
    assert readable[str(tmp_path / "configs/less.yaml")] is True
    assert readable[str(tmp_path / "work/less")] is False
    assert load_deployment(folder / config.name).recovery.fallback == (tmp_path / "configs/less.yaml",)


def test_grafana_shows_our_dashboards_from_the_prometheus_of_toolkit_up(tmp_path, config):
    change(config, monitoring={"prometheus_port": 9777, "alert_webhook": "https://alerts.example/hook"})
    folder = deployed(config, "compose", tmp_path / "out")
    service = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["grafana"]
    inside = {volume["target"]: folder / volume["source"] for volume in service["volumes"]}
    provisioning = inside["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9777" and source["isDefault"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/toolkit.yaml").read_text())["providers"]
    shown = {path.name: path.read_text() for path in inside[provider["options"]["path"]].iterdir()}
    assert shown == {path.name: path.read_text() for path in write_dashboards(tmp_path / "dashboards")}
    assert "alerts.example" not in "".join(
        path.read_text() for path in folder.rglob("*.y*ml") if path.name != config.name
    )
    dockerfile = (folder / "Dockerfile").read_text()
    for program in ("prometheus", "alertmanager"):  # where toolkit up looks for them: on PATH
        assert f"/bin/{program} /usr/local/bin/{program}\n" in dockerfile


def test_grafana_is_on_loopback_and_nobody_is_its_admin(tmp_path, config):
    folder = deployed(config, "compose", tmp_path / "out")
    service = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["grafana"]
    settings = service["environment"]
    assert settings["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert all(volume["read_only"] for volume in service["volumes"])
    assert re.fullmatch(r"[a-z/]+:[0-9.]+", service["image"]), "a named tag"


def test_without_prometheus_there_is_no_grafana(tmp_path, config):
    folder = deployed(change(config, monitoring={"prometheus": "off"}), "compose", tmp_path / "out")
    assert set(yaml.safe_load((folder / "compose.yaml").read_text())["services"]) == {
        "build",
        "serve",
        "loadtest",
        "loadtest-worker",
    }
    assert not (folder / "grafana").exists()
    assert "COPY --from" not in (folder / "Dockerfile").read_text()


def test_without_the_package_that_makes_dashboards(tmp_path, config, monkeypatch):
    monkeypatch.setattr("toolkit.monitor.packages.installed", lambda module: False)
    line = refused(config, "compose", tmp_path / "out")
    assert "the package grafana-foundation-sdk is not installed. Install it: " in line
    assert not (tmp_path / "out").exists()


def test_a_group_over_several_nodes_is_not_for_one_machine(tmp_path, config):
    line = refused(change(config, parallel={"tp": 1, "pp": 2, "nodes": 2}), "compose", tmp_path / "out")
    assert "parallel.nodes: compose starts containers on one machine, and a group needs 2. Use --to slurm" in line
