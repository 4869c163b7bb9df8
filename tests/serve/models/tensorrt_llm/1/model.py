"""Stands in for an engine: ranks above 0 never return from initialize, as those of a real group."""

import os
import time
from pathlib import Path

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


class TritonPythonModel:
    def initialize(self, args):
        broken = Path(args["model_repository"]) / f"broken{RANK}"
        if broken.exists():
            raise RuntimeError(broken.read_text())
        while RANK > 0 or (Path(args["model_repository"]) / "sleep0").exists():
            time.sleep(0.1)

    def execute(self, requests):
        for request in requests:
            request.get_response_sender().send(flags=1)
