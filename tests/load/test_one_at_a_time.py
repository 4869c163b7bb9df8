"""Two load tests of one deployment would disturb each other and write the same report."""

from __future__ import annotations

import os

from toolkit.files.file_lock import file_lock
from toolkit.load.runner import run
from toolkit.slo.verdict import Outcome


def test_a_second_load_test_of_a_deployment_is_refused_before_it_sends_anything(server, deployment) -> None:
    load = deployment(server)
    with file_lock(load.output / "loadtest.lock", "is being load-tested by"):
        verdict = run(load)
    assert verdict.outcome is Outcome.COULD_NOT_RUN
    said = f"is being load-tested by process {os.getpid()}. Wait for it, or end it: kill -- {os.getpid()}"
    assert verdict.reason == f"{load.output}: {said}"
    assert list(server.records()) == [] and not load.report_dir.exists()
