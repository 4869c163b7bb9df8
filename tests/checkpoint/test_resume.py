"""A conversion that is cut off goes on with the next run, and nothing that looks complete is ever wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
from collections import namedtuple
from pathlib import Path

import pytest
from blake3 import blake3
from safetensors.torch import load_file

from toolkit.checkpoint import convert, journal, write
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.files import artifacts

KILLS = 20


def convert_and_tell(file: str, progress) -> None:
    """What the processes to be killed do: tell of each block, and wait until it was heard."""

    def tell(done: int, total: int) -> None:
        progress.send(done)
        progress.recv()

    convert(load_deployment(file), tell)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != artifacts.LOCK_NAME}


@pytest.fixture
def whole(llama_dir, deploy, tmp_path) -> dict[str, bytes]:
    """The checkpoint that an uninterrupted run makes."""
    deployment = deploy(llama_dir, 2, 2)
    convert(deployment)
    found = content(deployment.checkpoint_dir)
    deployment.checkpoint_dir.rename(tmp_path / "whole")
    return found


@pytest.fixture
def broken_off(llama_dir, deploy, whole, monkeypatch) -> Deployment:
    """A deployment whose conversion was interrupted when about half was done."""
    deployment = deploy(llama_dir, 2, 2)
    with pytest.raises(KeyboardInterrupt):
        convert(deployment, interrupt_at(0.5))
    assert deployment.checkpoint_dir.with_suffix(".partial").is_dir()
    return deployment


def interrupt_at(share: float):
    def progress(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
def test_kill_9_at_20_random_moments(llama_dir, deploy, whole):
    deployment, rnd = deploy(llama_dir, 2, 2), random.Random(20)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "torch", "toolkit.checkpoint.write"])
    starts = []
    for _ in range(KILLS):
        ours, theirs = processes.Pipe()
        child = processes.Process(target=convert_and_tell, args=(str(deployment.file), theirs))
        child.start()
        theirs.close()
        starts.append(ours.recv())
        for _block in range(rnd.randrange(4)):
            ours.send("go on")
            ours.recv()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not deployment.checkpoint_dir.exists()
    assert starts == sorted(starts)
    assert starts[-1] > 0
    assert convert(deployment) is True
    assert content(deployment.checkpoint_dir) == whole
    assert convert(deployment) is False


def test_only_what_was_in_flight_is_done_again(broken_off, whole, monkeypatch):
    lines = (broken_off.checkpoint_dir.with_suffix(".partial") / journal.NAME).read_text().splitlines()
    done = len(lines) - 1
    jobs, run = [], write.run
    monkeypatch.setattr(write, "run", lambda job, *rest: jobs.append(job) or run(job, *rest))
    assert convert(broken_off) is True
    total = 7 * 7 + 3  # modules of seven layers, embedding, norm and output matrix
    assert 0 < done < total
    assert len(jobs) == total - done
    assert content(broken_off.checkpoint_dir) == whole


def test_a_line_that_was_cut_off_does_not_count(broken_off, whole):
    path = broken_off.checkpoint_dir.with_suffix(".partial") / journal.NAME
    path.write_bytes(path.read_bytes()[:-7])
    assert convert(broken_off) is True
    assert content(broken_off.checkpoint_dir) == whole


def test_after_the_machine_went_down_only_what_is_on_disk_counts(broken_off, whole, monkeypatch, tmp_path):
    boot = tmp_path / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr(journal, "BOOT_ID", boot)
    partial = broken_off.checkpoint_dir.with_suffix(".partial")
    for file in partial.glob("rank*.safetensors"):  # as if the last blocks had not been written
        damaged = bytearray(file.read_bytes())
        damaged[-100:] = bytes(100)
        file.write_bytes(damaged)
    assert convert(broken_off) is True
    assert content(broken_off.checkpoint_dir) == whole


def test_another_conversion_begins_anew(broken_off, llama_dir, deploy, tmp_path):
    file = broken_off.file
    file.write_text(file.read_text().replace("float16", "bfloat16"))
    deployment = load_deployment(file)
    assert convert(deployment) is True
    embedding = load_file(deployment.checkpoint_dir / "rank0.safetensors")["transformer.vocab_embedding.weight"]
    assert str(embedding.dtype) == "torch.bfloat16"


def test_a_source_that_changes_meanwhile(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)

    def touch(done: int, total: int) -> None:
        if done == total:
            os.utime(llama_dir / "model.safetensors", (1, 1))

    with pytest.raises(ToolkitError, match="changed while it was converted"):
        convert(deployment, touch)
    assert list(deployment.output.iterdir()) == []


def test_a_source_that_was_only_touched_is_read_and_not_converted_again(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)
    convert(deployment)
    before = artifacts.read_lock(deployment.checkpoint_dir)
    os.utime(llama_dir / "model.safetensors", (1, 1))
    read = []
    assert convert(deployment, lambda done, total: read.append(done / total)) is False
    assert read[-1] == 1
    after = artifacts.read_lock(deployment.checkpoint_dir)
    assert after.digest == before.digest  # so engines made from it stay as they are
    assert convert(deployment, lambda done, total: pytest.fail("read again")) is False


def test_a_disk_that_fills_up_meanwhile(llama_dir, deploy, whole, monkeypatch):
    deployment, pwrite, calls = deploy(llama_dir, 2, 2), os.pwrite, []

    def fill(*arguments):
        calls.append(arguments)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(ToolkitError, match=r"could not be written: No space left on device. Run it again"):
        convert(deployment)
    assert not deployment.checkpoint_dir.exists()
    monkeypatch.undo()
    assert convert(deployment) is True
    assert content(deployment.checkpoint_dir) == whole


def test_free_space_is_checked_before_anything_is_written(llama_dir, deploy, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6, 1000))
    deployment = deploy(llama_dir, 2, 2)
    with pytest.raises(ToolkitError, match=r"needs 0\.\d+ GB, 0.000 GB are free"):
        convert(deployment, lambda done, total: pytest.fail("began"))
    assert list(deployment.output.iterdir()) == []


def test_two_at_once(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)
    with (
        artifacts.atomic_directory(deployment.checkpoint_dir, resume=True),
        pytest.raises(ToolkitError, match="is being written by another process"),
    ):
        convert(deployment)


def test_the_lock_has_a_digest_of_every_tensor(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)
    convert(deployment)
    outputs = artifacts.read_lock(deployment.checkpoint_dir).outputs
    for rank in range(4):
        file = f"rank{rank}.safetensors"
        tensors = load_file(deployment.checkpoint_dir / file)
        data = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
        assert outputs[file]["tensors"] == {name: blake3(value).hexdigest() for name, value in data.items()}


def test_a_source_that_cannot_be_read_for_a_while(llama_dir, deploy, whole):
    """As on a network disk that goes away: what is done is kept."""
    deployment, away = deploy(llama_dir, 2, 2), llama_dir.with_name("away")
    weights = llama_dir / "model.safetensors"

    def take_away(done: int, total: int) -> None:
        if done > total / 2 and weights.exists():
            weights.rename(away)

    with pytest.raises(ToolkitError, match=r"model.safetensors: cannot be read: No such file"):
        convert(deployment, take_away)
    away.rename(weights)
    starts = []
    assert convert(deployment, lambda done, total: starts.append(done)) is True
    assert starts[0] > 0
    assert content(deployment.checkpoint_dir) == whole


def test_a_source_that_goes_away_while_it_is_compared(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)
    convert(deployment)
    weights = llama_dir / "model.safetensors"
    os.utime(weights, (1, 1))
    with pytest.raises(ToolkitError, match=r"model.safetensors: cannot be read: No such file"):
        convert(deployment, lambda done, total: weights.exists() and weights.unlink())
    assert deployment.checkpoint_dir.is_dir()
