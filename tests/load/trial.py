"""What a load test in these tests is made of: Locust, a workload, and what its server has recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from toolkit.known_truth import KnownTruth, Record

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
LOCUST = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]


def recorded(server: KnownTruth) -> dict[str, Record]:
    """What the server sent, by request."""
    return {record.id: record for record in server.records()}


def workload_file(folder: Path, **content: object) -> str:
    file = folder / "trial.yaml"
    file.write_text(json.dumps({"prompt_tokens": 40, "output_tokens": 10, "output": "fixed", **content}))
    return str(file)
