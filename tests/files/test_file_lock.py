import fcntl
import os
import signal
import subprocess
import threading
import time

import pytest

from toolkit.errors import ToolkitError
from toolkit.files.file_lock import file_lock, lock_holder


def test_who_holds_a_lock(tmp_path):
    file = tmp_path / "build.lock"
    assert lock_holder(file) is None, "there is no file"
    with file_lock(file, "is being built by"):
        assert lock_holder(file) == os.getpid()
        with pytest.raises(ToolkitError) as caught, file_lock(file, "is being built by"):
            pass
        assert str(caught.value) == (
            f"{tmp_path}: is being built by process {os.getpid()}. Wait for it, or end it: kill -- {os.getpid()}"
        )
    assert file.read_text() == f"{os.getpid()}\n" and lock_holder(file) is None, "its pid is left, the lock is not"


def test_a_group_that_has_the_lock_is_named_when_its_process_is_gone(tmp_path):
    file = tmp_path / "build.lock"
    with file_lock(file, "is being built by") as lock:
        lock.share(os.getpgrp())
        file.write_text(file.read_text().replace(f"{os.getpid()}\n", "99999999\n", 1))
        message = f"process {os.getpgrp()}. .* kill -- -{os.getpgrp()}"
        with pytest.raises(ToolkitError, match=message), file_lock(file, "is being built by"):
            pass


def test_a_group_is_named_also_when_its_leader_has_ended(tmp_path):
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout
    member = int(leader.stdout.readline())
    leader.wait()
    try:
        with file_lock(tmp_path / "build.lock", "is being built by") as lock:
            lock.share(leader.pid)
            (tmp_path / "build.lock").write_text(f"99999999\n-{leader.pid}\n")
            with (
                pytest.raises(ToolkitError, match=f"kill -- -{leader.pid}"),
                file_lock(tmp_path / "build.lock", "is being built by"),
            ):
                pass
    finally:
        os.kill(member, signal.SIGKILL)


def test_a_holder_that_has_not_written_its_pid_yet(tmp_path):
    """`toolkit stop` sends a signal to the pid that this returns. 0 would be its own process group."""
    file = tmp_path / "lock"
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)

        def write() -> None:
            time.sleep(0.1)  # less than `lock_holder` waits
            stream.write("4321\n")
            stream.flush()

        writer = threading.Thread(target=write)
        writer.start()
        assert lock_holder(file) == 4321
        writer.join()


def test_a_holder_that_never_writes_its_pid(tmp_path):
    file = tmp_path / "lock"
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert lock_holder(file) is None
        message = r"is being built by another process\. Wait for it\."
        with pytest.raises(ToolkitError, match=message), file_lock(file, "is being built by"):
            pass


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match="cannot be written: "), file_lock(tmp_path / "file" / "lock", "is built by"):
        pass
