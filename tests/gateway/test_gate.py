"""The gate starts fast, because while it starts no request enters."""

from __future__ import annotations

import subprocess
import sys

from toolkit.gateway.gate_settings import GateSettings


def test_the_gate_imports_nothing_that_only_reading_a_deployment_needs():
    """These take as long to import as all that it needs."""
    slow = ("toolkit.config", "pydantic", "yaml", "psutil", "numpy", "grpc")
    program = f"import sys, toolkit.gateway.gate; print([name for name in {slow} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_the_settings_of_a_deployment_reach_the_gate(door_yaml, tmp_path):
    gateway = {"keys_file": str(tmp_path / "keys"), "requests_per_minute": 5, "max_body_mb": 3, "model_name": 'a "b"'}
    settings = GateSettings.read(GateSettings.of(door_yaml(gateway=gateway), 7).argument())
    assert settings == GateSettings(7, 'a "b"', False, 3, str(tmp_path / "keys"), 5)
