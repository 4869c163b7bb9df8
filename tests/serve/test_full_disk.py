"""The disk that a run writes on is full: what is served goes on, drains and stops."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.serve import serve, status, stop

from .stream import Stream

SIZE_MIB = 4


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """The folder of `deploy`, on a disk of its own."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk to fill")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError), (folder / "fill").open("wb", buffering=0) as stream:
        for _ in range(SIZE_MIB << 8):
            stream.write(bytes(4096))


@pytest.mark.slow
def test_a_full_disk(small_disk, deploy, capfd):
    deployment = deploy(pp=2)
    serve(deployment, detach=True)
    fill(small_disk)
    stream = Stream(deployment, tokens=10)
    while not stream.received:
        time.sleep(0.05)
    assert (status(deployment).phase, status(deployment).running) == ("ready", 1)
    assert stop(deployment).endswith("1 request finished, none cut")
    stream.join(30)
    assert len(stream.received) == 10
    assert status(deployment).phase == "stopped"
    with pytest.raises(ToolkitError, match="/out/run: cannot be written: No space left on device"):
        serve(deployment, detach=True)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_no_room_for_the_copy_that_is_served(small_disk, deploy, monkeypatch):
    deployment = deploy()
    (small_disk / "tmp").mkdir()
    (deployment.repository_dir / "ensemble" / "1" / "data").write_bytes(bytes(SIZE_MIB << 19))
    (small_disk / "half").write_bytes(bytes(SIZE_MIB << 18))
    monkeypatch.setattr("tempfile.tempdir", str(small_disk / "tmp"))
    hint = r"Set TMPDIR to a folder with room\.$"
    with pytest.raises(ToolkitError, match=rf"cannot copy the model repository to here: .*No space left.*{hint}"):
        serve(deployment)
    assert not [*(small_disk / "tmp").iterdir()]
