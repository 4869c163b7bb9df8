"""How many instances, on which GPUs, and whether the models that call each other agree on streaming."""

import json
import shutil

import pytest

from tests.lint.repositories import ANSWERS, BLS, DEFAULT, LLM, RANKS, START, check_found, config, parameter
from toolkit.lint import lint

GROUP = r"instance_group {[^}]*}"
EIGHT = ",".join(map(str, range(RANKS)))


def group(text: str, model: str = LLM):
    return config(model, GROUP, text)


def of_one_rank(repository):
    """The engine beside it becomes one of a single rank."""
    path = repository.parent / "engine/config.json"
    content = json.loads(path.read_text())
    content["pretrained_config"]["mapping"] = {"world_size": 1, "tp_size": 1, "pp_size": 1}
    path.write_text(json.dumps(content))
    for rank in range(1, RANKS):
        (repository.parent / f"engine/rank{rank}.engine").unlink()


def all_of(*changes):
    def change(repository):
        for one in changes:
            one(repository)

    return change


TWO = group("instance_group { count: 2 kind: KIND_CPU }")
STREAM, WHOLE = "decoupled: true", "decoupled: false"
BROKEN = [
    ("instance-kind", START, group("instance_group { count: 1 kind: KIND_GPU }"), "instance_group is KIND_GPU"),
    ("instance-kind", START, group("instance_group { count: 1 }"), "instance_group is KIND_AUTO"),
    ("instance-kind", START, group("instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }"), "each loads the whole engine"),
    ("instance-kind", START, group(""), "instance_group is missing"),
    ("instances", START, TWO, "has 2 instances and no gpu_device_ids"),
    ("instances", DEFAULT, all_of(of_one_rank, TWO), "load the engine on the same GPUs"),
    ("instances", DEFAULT, all_of(of_one_rank, TWO, parameter("gpu_device_ids", "0")), "some share their GPUs"),
    ("instances", ANSWERS, config("postprocessing", "count: 1", "count: 2"), "each knows only its own part"),
    ("instances", ANSWERS, group("", "postprocessing"), "an instance for each GPU, and each knows only its own part"),
    ("device-ids", START, parameter("gpu_device_ids", "0,1,2,3"), "is 4 GPUs, but the engine has 8 ranks"),
    ("device-ids", START, parameter("gpu_device_ids", f"{EIGHT};0"), "is 1 GPUs"),
    ("device-ids", START, parameter("gpu_device_ids", "0,0,1,2,3,4,5,6"), "has a number twice"),
    ("device-ids", START, parameter("participant_ids", "1,2"), "participant_ids 1,2 is 2 ranks"),
    ("decoupled", ANSWERS, config(BLS, STREAM, WHOLE), "is not decoupled, and tensorrt_llm, which it calls, is"),
    ("decoupled", ANSWERS, config(LLM, STREAM, WHOLE), "requests with stream: true fail"),
]


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_each_way_to_break_it_is_found(repository, kind, effect, change, says):
    change(repository)
    check_found(repository, kind, effect, says)


@pytest.mark.parametrize(
    "change",
    [
        group("instance_group { count: 1 kind: KIND_GPU gpus: [ 0 ] }"),
        group("instance_group { count: 1 kind: KIND_MODEL }"),
        parameter("gpu_device_ids", EIGHT),
        parameter("participant_ids", EIGHT),
        all_of(config(BLS, STREAM, WHOLE), config(LLM, STREAM, WHOLE)),
        all_of(TWO, parameter("gpu_device_ids", f"{EIGHT};8,9,10,11,12,13,14,15")),
    ],
)
def test_what_is_right_has_nothing(repository, change):
    change(repository)
    assert lint(repository) == []


def test_the_model_that_is_called_is_the_one_that_counts(repository):
    (repository / LLM).rename(repository / "llm")
    config("llm", f'name: "{LLM}"', 'name: "llm"')(repository)
    parameter("tensorrt_llm_model_name", "llm", BLS)(repository)
    config("llm", STREAM, WHOLE)(repository)
    found = [one for one in lint(repository) if one.kind == "decoupled"]
    assert len(found) == 1 and "and llm, which it calls, is not" in found[0].what


def test_each_of_several_executors_is_looked_at(repository):
    """As NVIDIA's docs run two instances: two folders, each with GPUs of its own."""
    shutil.copytree(repository / LLM, repository / f"{LLM}_2")
    config(f"{LLM}_2", f'name: "{LLM}"', f'name: "{LLM}_2"')(repository)
    assert lint(repository) == []
    for change in (parameter("gpt_model_type", "v2", f"{LLM}_2"), group("", f"{LLM}_2")):
        change(repository)
    parameter("gpu_device_ids", "0,1", f"{LLM}_2")(repository)
    found = lint(repository)
    assert {one.kind for one in found} == {"parameter-value", "instance-kind", "device-ids"}
    assert {one.path.parent.name for one in found} == {f"{LLM}_2"}
    parameter("gpt_model_path", "/nowhere", f"{LLM}_2")(repository)
    assert "engine-path" in {one.kind for one in lint(repository)}
