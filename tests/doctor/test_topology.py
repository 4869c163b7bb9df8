"""nvidia-smi's table of ways between GPUs, as recorded in the form that it prints."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doctor.fake_nvml import a100s_pcie, h100s
from toolkit.errors import ToolkitError
from toolkit.machine import topology as topology_module
from toolkit.machine.gpus import Gpus
from toolkit.machine.links import look_at_topology, topology_of_links
from toolkit.machine.topology import Topology, parse_topology, speed

RECORDED = Path(__file__).parent / "recorded"
TWO = (
    "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    "GPU0\t X \tPHB\t0-63\t0\t\tN/A\n"
    "GPU1\tPHB\t X \t0-63\t0\t\tN/A\n"
)


def recorded(name: str) -> Topology:
    return parse_topology((RECORDED / f"{name}.txt").read_text())


def test_dgx_h100():
    found = recorded("dgx-h100")
    assert "\x1b[4m" in (RECORDED / "dgx-h100.txt").read_text(), "the header is underlined, also in a pipe"
    assert found.gpus == tuple(range(8)), "NICs are no GPUs"
    assert {found.way(a, b) for a in range(8) for b in range(8) if a != b} == {"NV18"}
    assert (found.way(3, 3), found.worst((0, 5)), found.worst((0,))) == ("X", "NV18", "")
    assert [found.numa_of(gpu) for gpu in found.gpus] == [(0,)] * 4 + [(1,)] * 4


def test_pairs_with_bridges():
    found = recorded("h100-pcie-bridges")
    assert (found.way(0, 4), found.way(0, 1), found.way(3, 4)) == ("NV12", "NODE", "SYS")
    assert found.worst((0, 4, 1)) == "SYS"


def test_pcie_only():
    found = recorded("l40s")
    assert (found.way(6, 7), found.way(5, 6), found.way(0, 7)) == ("PIX", "NODE", "SYS")
    assert (found.numa_of(0), found.numa_of(7)) == ((0,), (1,))


def test_a_container_that_tells_no_nvlink_and_no_numa_node():
    found = recorded("container")
    assert (found.gpus, found.way(0, 3), found.numa) == ((0, 1, 2, 3), "PHB", ((),) * 4)


@pytest.mark.parametrize("name, what", [("truncated", "row of GPU5 has 3 of 8"), ("garbage", "is not a table of GPUs")])
def test_what_is_no_whole_table(name, what):
    with pytest.raises(ToolkitError, match=what):
        recorded(name)


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("GPU1\tPHB", "GPU1\tNODENODE", "'NODENODE' in the row of GPU1 is not a way"),
        ("GPU1\tPHB", "GPU1\tSYS", "GPU0 to GPU1 is PHB, and back it is SYS"),
        ("GPU1\tPHB", "GPU2\tPHB", "row of GPU1 has 0 of 2"),
        ("PHB", "X", "GPU0 to GPU1 is X, and back it is X"),
    ],
)
def test_tables_that_contradict_themselves(old, new, what):
    with pytest.raises(ToolkitError, match=what):
        parse_topology(TWO.replace(old, new))


def test_the_first_lines_of_any_table_are_refused_or_whole():
    """A table cut anywhere: never a smaller node, never another exception."""
    text = (RECORDED / "h100-pcie-bridges.txt").read_text()
    whole = parse_topology(text)
    for end in range(0, len(text), 7):
        try:
            found = parse_topology(text[:end])
        except ToolkitError:
            continue
        assert found.ways[: len(found.gpus)] == tuple(row[: len(found.gpus)] for row in whole.ways[: len(found.gpus)])


@given(st.data())
def test_a_table_that_was_tampered_with_is_refused_or_read(data):
    """Never another exception: this is the output of a program of which every version may differ."""
    lines = (RECORDED / "h100-pcie-bridges.txt").read_text().splitlines()[:9]
    fields = [line.split("\t") for line in lines]
    row = data.draw(st.integers(0, 8))
    cell = data.draw(st.integers(0, len(fields[row]) - 1))
    odd = ["X", "NV4", "GPU3", "9" * 5000, "²", "GPU" + "9" * 5000, "GPU2 GPU2"]
    fields[row][cell] = data.draw(st.one_of(st.text(), st.sampled_from(odd)))
    with contextlib.suppress(ToolkitError):
        found = parse_topology("\n".join(map("\t".join, fields)))
        assert len(found.ways) == len(found.numa) == len(found.gpus)


@pytest.mark.parametrize(
    "affinities, numa",
    [
        ("0-63\t0\t\tN/A", (0,)),
        ("0-15,32-47\t0-1\t\tN/A", (0, 1)),
        ("0-63\t0-1,4\t\tN/A", (0, 1, 4)),
        ("N/A\tN/A\t\tN/A", ()),
        ("", ()),
        ("3,5\t12\t\t2", (12,)),
        ("0-7\t\tN/A\t\tN/A", ()),  # a short cell is padded by a second tab on some drivers
        ("0-7\t\t1\t\tN/A", (1,)),
        ("\t0\t\tN/A", (0,)),  # blank cells: columns are known by their place
        ("\t0-1\t\t", (0, 1)),
        ("0-63\t\t\tN/A", ()),
        ("0-55,112-167\t1\t\t", (1,)),
        ("0-7\t\t1", (1,)),
        ("\t\t\tN/A", ()),
        ("0-63\t3-1\t\tN/A", ()),
        ("0-63\t0-\t\tN/A", ()),
        ("0-63\t٣\t\tN/A", ()),
    ],
)
def test_affinities(affinities, numa):
    found = parse_topology(TWO.replace("0-63\t0\t\tN/A", affinities))
    assert found.numa_of(1) == numa


def test_names_of_network_cards_in_older_drivers_and_no_numa_column():
    text = "GPU0 GPU1 mlx5_0 CPU Affinity\nGPU0 X NV4 PIX 0-7\nGPU1 NV4 X SYS 8-15\nmlx5_0 PIX SYS X\n"
    found = parse_topology(text)
    assert (found.gpus, found.way(1, 0), found.numa) == ((0, 1), "NV4", ((), ()))


@pytest.mark.parametrize("nics", [[], ["NIC0", "NIC1"], ["mlx5_0", "mlx5_bond_0"]])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_blank_cells_behind_columns_of_network_cards(nics, columns):
    """The same answer whatever else the table has, and none for a column that is not there."""
    names = ["CPU Affinity", "NUMA Affinity", "GPU NUMA ID"][:columns]
    cells = [[""], ["", "1"], ["", "1", "", "N/A"]][columns - 1]
    lines = [
        "\t".join(["", "GPU0", "GPU1", *nics, *names]),
        "\t".join(["GPU0", " X ", "NV12", *("PIX" for _ in nics), *cells]),
        "\t".join(["GPU1", "NV12", " X ", *("SYS" for _ in nics), *cells]),
        *("\t".join([nic, "PIX", "SYS", *(" X " if nic == other else "PIX" for other in nics)]) for nic in nics),
        "\nLegend:\n\n  X    = Self\n\nNIC Legend:\n\n  NIC0: mlx5_0\n  NIC1: mlx5_bond_0",
    ]
    found = parse_topology("\n".join(lines))
    assert (found.gpus, found.numa_of(0), found.numa_of(1)) == ((0, 1), *[(1,) if columns > 1 else ()] * 2)
    assert found.numa == (((1,), (1,)) if columns > 1 else ((), ()))


def test_the_order_of_ways():
    slowest_first = ["unknown", "SYS", "PCIe", "NODE", "PHB", "PXB", "PIX", "NVLink", "NV1", "NV2", "NV18"]
    assert sorted(slowest_first, key=speed) == slowest_first
    assert speed("what") == speed("unknown")


def smi(folder: Path, script: str) -> Path:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_nvidia_smi_is_asked(seen, tmp_path):
    program = smi(tmp_path, f'test "$*" = "topo -m" && cat {RECORDED}/dgx-h100.txt')
    assert look_at_topology(seen(h100s()), program) == recorded("dgx-h100")


@pytest.mark.parametrize("script", [f"cat {RECORDED}/garbage.txt", f"cat {RECORDED}/container.txt", "exit 9"])
def test_else_nvml_tells_of_nvlink(seen, tmp_path, script):
    """Also where nvidia-smi has other GPUs than NVML."""
    found = look_at_topology(seen(h100s()), smi(tmp_path, script))
    assert (found.source, found.way(0, 7), found.numa_of(0)) == ("NVML", "NVLink", ())


def test_a_program_that_does_not_run_or_does_not_end(seen, tmp_path, monkeypatch):
    gpus = seen(a100s_pcie())
    for program in (tmp_path / "none", None):
        assert look_at_topology(gpus, program).way(0, 1) == "PCIe"
    monkeypatch.setattr(topology_module, "TIMEOUT_S", 0.1)
    assert look_at_topology(gpus, smi(tmp_path, "exec sleep 5")).source == "NVML"


def test_no_gpus_no_topology():
    assert look_at_topology(Gpus(), None) == Topology()
    assert topology_of_links(Gpus()).gpus == ()
