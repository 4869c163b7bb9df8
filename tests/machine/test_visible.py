"""CUDA_VISIBLE_DEVICES as CUDA's programming guide says, on eight GPUs of which two have UUIDs that begin alike."""

import pytest

from toolkit.errors import ToolkitError
from toolkit.machine.visible import visible_gpus

UUIDS = {
    0: "GPU-52a3a85d-0000-0000-0000-82c69ed360fc",
    1: "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    2: "GPU-8932f9a0-1111-4106-c12f-20bd9faed9f6",
    3: "GPU-1f0e2d3c-2222-4106-c12f-20bd9faed9f6",
    4: "GPU-c4c4c4c4-3333-4106-c12f-20bd9faed9f6",
    5: "GPU-d5d5d5d5-4444-4106-c12f-20bd9faed9f6",
    6: "GPU-e6e6e6e6-5555-4106-c12f-20bd9faed9f6",
    7: "",
}
"""NVML cannot open GPU 7."""


@pytest.mark.parametrize(
    "value, numbers",
    [
        ("0", (0,)),
        ("2,1", (2, 1)),
        (" 7, 6 ,03", (7, 6, 3)),
        (UUIDS[0], (0,)),
        (f"{UUIDS[4]},{UUIDS[1]}", (4, 1)),
        ("GPU-8932f937,GPU-8932f9a, GPU-5", (1, 2, 0)),
    ],
)
def test_numbers_and_uuids_also_shortened(value, numbers):
    found = visible_gpus(value, UUIDS)
    assert (found.numbers, found.ended) == (numbers, "")


@pytest.mark.parametrize(
    "value, numbers, ended",
    [
        ("", (), "it is empty"),
        (" ", (), "it is empty"),
        (",0", (), "an empty entry ends the list"),
        ("-1", (), "-1 ends the list"),
        ("0,2,-1,1", (0, 2), "-1 ends the list"),  # the guide's own example
        ("0,1,", (0, 1), "an empty entry ends the list"),
        ("0,,1", (0,), "an empty entry ends the list"),
        ("3,8,1", (3,), "there is no GPU 8"),
        ("NoDevFiles", (), "'NoDevFiles' is not a number and ends the list"),  # Slurm's, of a job without GPUs
        ("all", (), "'all' is not a number and ends the list"),
        ("0,0x1", (0,), "'0x1' is not a number and ends the list"),
        ("1,²", (1,), "'²' is not a number and ends the list"),
        ("0," + "9" * 5000, (0,), "'99999"),
        ("0,1,0", (), "GPU 0 is named twice, which hides all"),
        ("GPU-8932f937,GPU-8932f937-d72c", (), "GPU 1 is named twice, which hides all"),
        ("GPU-5,GPU-8932f9,GPU-c", (0,), "'GPU-8932f9' fits the UUIDs of GPUs 1, 2"),
        ("GPU-5,GPU-dead,GPU-c", (0,), "no GPU has the UUID 'GPU-dead'"),
        ("GPU-52A3A85D", (), "no GPU has the UUID 'GPU-52A3A85D'"),
        (f"{UUIDS[0]}f", (), f"no GPU has the UUID '{UUIDS[0]}f'"),
        ("GPU-5,1", (0,), "'1' is not a UUID and ends the list"),
        ("0,GPU-8932f937", (0,), "'GPU-8932f937' is not a number and ends the list"),
        ("gpu-5", (), "'gpu-5' is not a number and ends the list"),
    ],
)
def test_the_first_invalid_entry_ends_the_list(value, numbers, ended):
    found = visible_gpus(value, UUIDS)
    assert found.numbers == numbers and found.ended.startswith(ended)


@pytest.mark.parametrize(
    "value, part",
    [
        ("MIG-377e0049-554c-540b-93c6-d0976f8426cb", "MIG-377e0049-554c-540b-93c6-d0976f8426cb"),
        ("MIG-GPU-52a3a85d-0000-0000-0000-82c69ed360fc/1/0", "MIG-GPU-52a3a85d-0000-0000-0000-82c69ed360fc/1/0"),
        ("0,1,MIG-77", "MIG-77"),
    ],
)
def test_parts_of_gpus_are_refused(value, part):
    with pytest.raises(ToolkitError) as refused:
        visible_gpus(value, UUIDS)
    assert str(refused.value) == (
        f"CUDA_VISIBLE_DEVICES: '{part}' is a part of a GPU (MIG). "
        "Give numbers or UUIDs of whole GPUs, as nvidia-smi -L shows them, or unset it."
    )


@pytest.mark.parametrize("uuids", [{}, {0: "", 1: ""}])
def test_uuids_that_nobody_can_look_up(uuids):
    with pytest.raises(ToolkitError, match=r"'GPU-5' is a UUID, but NVML shows no UUIDs here\. See nvidia-smi"):
        visible_gpus("GPU-5,GPU-6", uuids)


def test_numbers_are_taken_as_they_are_where_nvml_tells_nothing():
    assert visible_gpus("11,3", {}).numbers == (11, 3)
