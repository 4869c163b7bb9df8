"""Cores near the GPUs, on machines made of text files."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from toolkit.errors import ToolkitError
from toolkit.machine.cores import given_cores, ranges
from toolkit.runtime import cores_near


@pytest.fixture
def nodes(tmp_path):
    """Two sockets of 56 cores with two threads each, as a machine of 8 H100 has."""
    for node, cpus in enumerate(("0-55,112-167", "56-111,168-223")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus + "\n")
    return tmp_path


def test_sixteen_cores_for_each_of_eight_gpus(nodes):
    cores, memory = cores_near([(0,)] * 4 + [(1,)] * 4, 16, nodes)
    assert ranges(cores) == "0-119,168-175" and len(cores) == 128 and memory == (0, 1)


def test_gpus_of_one_node_only(nodes):
    assert cores_near([(1,), (1,)], 2, nodes) == ((56, 57, 58, 59), (1,))


def test_gpus_near_several_nodes(nodes):
    """The lowest of both nodes; whole cores first, their second threads last."""
    cores, memory = cores_near([(0, 1)] * 4, 30, nodes)
    assert ranges(cores) == "0-119" and memory == (0, 1)
    assert cores_near([(0, 1), (1,)], 57, nodes)[0] == (*range(57), *range(57, 112), 168, 169)


def test_a_node_without_memory_gives_cores_alone(nodes):
    (nodes / "has_memory").write_text("0\n")
    assert cores_near([(0, 1)], 2, nodes) == ((0, 1), (0,))
    assert cores_near([(1,)], 2, nodes) == ((56, 57), ())


def test_cores_of_the_first_gpus_do_not_depend_on_the_others(nodes):
    of_each = [(1,), (0, 1), (0,), (0, 1)]
    chosen = [set(cores_near(of_each[: count + 1], 20, nodes)[0]) for count in range(4)]
    assert all(len(more - less) == 20 and less < more for less, more in pairwise(chosen))


def test_too_few_cores(nodes):
    with pytest.raises(ToolkitError, match=r"NUMA node 0 has 112 cores, 4 GPUs x 32 need 128\. Use at most 28\."):
        cores_near([(0,)] * 4, 32, nodes)
    with pytest.raises(ToolkitError, match=r"NUMA nodes 0-1 have 224 cores, 2 GPUs x 128 need 256\. Use at most 112\."):
        cores_near([(0, 1)] * 2, 128, nodes)


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("0-x", "invalid literal")])
def test_a_machine_that_does_not_tell(tmp_path, text, message):
    (tmp_path / "node0").mkdir()
    if text is not None:
        (tmp_path / "node0" / "cpulist").write_text(text)
    with pytest.raises(ToolkitError, match=f"does not name the cores of NUMA node 0: {message}"):
        cores_near([(0,)], 1, tmp_path)


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1], "0-1"), ([5, 0, 1, 2, 8], "0-2,5,8")])
def test_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize("mine, given", [({*range(224)}, None), ({56, 58}, (56, 58)), ({0, 999}, None)])
def test_cores_that_somebody_chose(nodes, monkeypatch, mine, given):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: mine)
    assert given_cores(nodes) == given


def test_a_kernel_that_tells_no_nodes(tmp_path):
    assert given_cores(tmp_path) is None
