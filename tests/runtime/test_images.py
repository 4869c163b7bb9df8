"""Which image a deployment runs in: that of the release of its engines, to the last figure."""

import pytest

from toolkit.engine.tensorrt.plan import require_program
from toolkit.errors import ToolkitError
from toolkit.runtime import Needs, require_runtime, wrap
from toolkit.runtime.images import advised, image, image_file

NVIDIA = "nvcr.io/nvidia/tritonserver:{}-trtllm-python-py3"


def of(version: str) -> dict[str, str]:
    return {"kind": "tensorrt", "version": version}


@pytest.mark.parametrize(
    ("version", "tag"),
    [
        ("0.20.0", "25.07"),
        ("1.0.0", "25.10"),
        ("1.0.3.2510", "25.11"),
        ("1.1.0", "26.02"),
        ("1.2.0", "26.03"),
        ("1.2.1", "26.07"),
    ],
)
def test_the_newest_image_with_exactly_this_version(deploy, version, tag):
    deployment = deploy("docker", engine=of(version))
    assert image(deployment) == advised(deployment) == NVIDIA.format(tag)
    assert NVIDIA.format(tag) in wrap(deployment, ["true"], Needs()).arguments
    assert image_file(deploy("enroot", engine=of(version))).name == f"tritonserver-{tag}-trtllm-python-py3.sqsh"


@pytest.mark.parametrize("version", ["1.0.1", "1.0", "1.0.0rc2"])
@pytest.mark.parametrize("kind", ["docker", "enroot", "apptainer"])
def test_a_version_that_no_image_has_is_one_line_before_anything_else(deploy, programs, version, kind):
    deployment = deploy(kind, engine=of(version))
    for needing in (require_runtime, lambda one: wrap(one, ["true"], Needs())):
        with pytest.raises(ToolkitError) as caught:
            needing(deployment)
        assert str(caught.value) == (
            f"{deployment.file}: runtime.image: no image of NVIDIA's has TensorRT-LLM {version}. "
            "Name one that has it, or set engine.version to 1.0.0 or 1.0.3.2510."
        )


def test_a_version_that_no_image_has_runs_in_one_that_is_named(deploy):
    deployment = deploy({"kind": "docker", "image": "me/mine:1"}, engine=of("1.0.1"))
    assert image(deployment) == advised(deployment) == "me/mine:1"


def test_advice_names_the_image_of_the_version(deploy, programs):
    def advice(version: str) -> str:
        with pytest.raises(ToolkitError) as caught:
            require_program(deploy(engine=of(version)))
        return str(caught.value)

    assert f"Run this inside {NVIDIA.format('25.10')}, or" in advice("1.0.0")
    assert "Run this inside an image with TensorRT-LLM 1.0.1, or" in advice("1.0.1")
