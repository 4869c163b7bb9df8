"""The field `runtime` of the YAML."""

from __future__ import annotations

import pytest
import yaml

from toolkit.config.load import load_deployment
from toolkit.config.sections import Runtime
from toolkit.errors import ToolkitError


def test_the_word_alone_is_the_kind(deploy):
    assert deploy("docker").runtime == deploy({"kind": "docker"}).runtime == Runtime(kind="docker")


def test_the_host_unless_said_otherwise(deploy):
    deployment = deploy()
    content = yaml.safe_load(deployment.file.read_text())
    del content["runtime"]
    deployment.file.write_text(yaml.safe_dump(content))
    assert load_deployment(deployment.file).runtime == Runtime()


def test_a_file_is_relative_to_the_yaml(deploy):
    deployment = deploy({"kind": "apptainer", "image_file": "../x.sif"})
    assert deployment.runtime.image_file == deployment.file.parent.parent / "x.sif"


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ("dokcer", "runtime.kind: input should be 'host', 'docker', 'enroot' or 'apptainer', got 'dokcer'"),
        (5, "runtime: expected a mapping of keys, got 5"),
        ({"kin": "docker"}, "runtime.kin: unknown key. Known here: image, image_file, kind, options."),
        ({"kind": "docker", "image": ""}, "runtime.image: string should have at least 1 character"),
        ({"kind": "docker", "options": "--x"}, "runtime.options: expected a list, got '--x'"),
        ({"kind": "docker", "options": [1]}, "runtime.options.0: input should be a valid string, got 1"),
        ({"options": ["--x"]}, "runtime.options: kind host starts no container. Remove them"),
        ({"kind": "docker", "image_file": "x"}, "runtime.image_file: docker runs no image file. Give runtime.image"),
    ],
)
def test_mistakes(deploy, runtime, message):
    with pytest.raises(ToolkitError) as caught:
        deploy(runtime)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "hint"),
    [
        ("docker", ["--env", "HF_TOKEN=hf_1234"], "Export HF_TOKEN, and give --env HF_TOKEN alone."),
        ("enroot", ["--env=NGC_API_KEY=hf_1234"], "Export NGC_API_KEY, and give --env NGC_API_KEY alone."),
        ("apptainer", ["--x", "--env=A=1,HF_TOKEN=hf_1234"], "Export APPTAINERENV_HF_TOKEN."),
    ],
)
def test_a_secret_in_the_options_is_refused_and_not_shown(deploy, kind, options, hint):
    with pytest.raises(ToolkitError) as caught:
        deploy({"kind": kind, "options": options})
    assert "holds the value of" in str(caught.value) and str(caught.value).endswith(hint)
    assert "hf_1234" not in str(caught.value)
