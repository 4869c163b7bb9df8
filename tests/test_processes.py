import gc
import os
from pathlib import Path

import pytest

from toolkit.processes import forked_pool


class Cycle:
    """Refers to itself, so that only the garbage collector frees it; then writes down the process that did."""

    def __init__(self, log: Path) -> None:
        self.log, self.itself = log, self

    def __del__(self) -> None:
        with self.log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")


@pytest.fixture
def no_collection():
    """The garbage of this process is still there when it forks."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_a_worker_does_not_collect_the_garbage_of_its_parent(tmp_path):
    """It may belong to a library with threads, such as gRPC: freeing it in a fork can end the worker."""
    log = tmp_path / "collected-by"
    Cycle(log)
    with forked_pool(1) as pool:
        pool.submit(gc.collect).result()
    assert not log.exists()
    gc.collect()
    assert log.read_text() == f"{os.getpid()}\n"
