import gc
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from toolkit.processes import end_session, forked_pool, free_port, signals_handled


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


def test_handlers_are_restored_and_a_nohup_is_kept():
    seen, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_handled(lambda number, _frame: seen.append(number), signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    with ThreadPoolExecutor(1) as pool:

        def handler_inside():
            with signals_handled(lambda number, _frame: None, signal.SIGTERM):
                return signal.getsignal(signal.SIGTERM)

        assert pool.submit(handler_inside).result() == signal.SIG_DFL


def test_the_end_of_a_session_is_the_end_of_all_that_it_started():
    """The child of the shell ignores SIGTERM and outlives the shell."""
    script = "trap '' TERM; (while :; do sleep 1; done) & echo $!; exit 0"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    end_session(process, grace_s=0.5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert process.returncode == 0


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", free_port())):
        pass
