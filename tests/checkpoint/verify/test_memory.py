"""Memory while verifying follows the size of one layer, not of the model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.checkpoint.test_memory import write_model

MEASURE = """
import sys, threading
from pathlib import Path

from toolkit.checkpoint.verify import meaning, verify

def anonymous_mib():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].removesuffix("kB")) / 1024

def watch():
    while not done.wait(0.002):
        seen.append(anonymous_mib())

checkpoint, model, part = sys.argv[1:]
seen, done, before = [], threading.Event(), anonymous_mib()
watcher = threading.Thread(target=watch)
watcher.start()
same = verify(Path(checkpoint), Path(model), **{"bytes": False, "meaning": False, part: True}).same
done.set()
watcher.join()
assert same
print(max(seen) - before)
"""


@pytest.mark.slow
def test_peak_of_memory(tmp_path, deploy):
    """A layer takes 60 MiB in float32, the whole model 550, its largest matrix 125."""
    assert write_model(tmp_path / "model", layers=5) > 280e6
    checkpoint = deploy(tmp_path / "model", 2, 4).checkpoint_dir
    for part, limit_mib in (("bytes", 200), ("meaning", 250)):
        program = [sys.executable, "-c", MEASURE, checkpoint, tmp_path / "model", part]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert float(done.stdout) < limit_mib, part
