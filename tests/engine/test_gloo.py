"""The private parts of gloo: they are there, or one sentence says that this PyTorch has changed them."""

import threading
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore

from tests.ports import free_port
from toolkit.engine.rehearsal import gloo
from toolkit.engine.rehearsal.gloo import Gloo, open_store
from toolkit.errors import ToolkitError

HOST, SOON = "127.0.0.1", timedelta(seconds=60)


def test_this_pytorch_has_what_the_ranks_need():
    """If this fails, PyTorch has changed: see toolkit/engine/rehearsal/gloo.py for what is used, why, and instead."""
    store = open_store(HOST, free_port(), True, SOON)
    store.set("group", "x")
    assert store.get("group") == b"x"
    Gloo(HashStore(), 0, 1, HOST, SOON)


def test_messages_of_each_tag_are_a_queue():
    store, ends = HashStore(), {}

    def connect(rank: int) -> None:
        ends[rank] = Gloo(store, rank, 2, HOST, SOON)

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    buffers = {tag: torch.zeros(4, dtype=torch.int32) for tag in (0, 1)}
    receiving = [ends[1].receive(buffer, 0, tag) for tag, buffer in buffers.items()]
    sending = [ends[0].send(torch.full((size,), size, dtype=torch.int32), 1, tag) for tag, size in ((1, 2), (0, 3))]
    for work in (*sending, *receiving):
        work.wait(SOON)
    assert (buffers[0].tolist(), buffers[1].tolist()) == ([3, 3, 3, 0], [2, 2, 0, 0])


class WithoutOptions:
    @staticmethod
    def create_device(hostname: str) -> None:
        pass


def test_a_pytorch_that_has_changed_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(gloo, "ProcessGroupGloo", WithoutOptions)
    with pytest.raises(ToolkitError) as caught:
        Gloo(HashStore(), 0, 1, HOST, SOON)
    assert str(caught.value) == (
        f"PyTorch {torch.__version__} has changed private parts of gloo that the rehearsal uses: type object "
        f"'WithoutOptions' has no attribute '_Options'. Use torch {gloo.TRIED[0]} to {gloo.TRIED[-1]}, or change "
        "toolkit/engine/rehearsal/gloo.py."
    )
