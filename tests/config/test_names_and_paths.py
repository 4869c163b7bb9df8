"""What a deployment may be called, where it may listen, and where its files may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError

FLAGSHIP = Path(__file__).parents[2] / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"


def load(folder: Path, content: dict) -> Deployment:
    (folder / "x.yaml").write_text(yaml.safe_dump(content))
    return load_deployment(folder / "x.yaml")


@pytest.mark.timeout(60)
def test_more_replicas_than_there_are_ports(tmp_path: Path) -> None:
    """They are not counted one by one: there would be no end to it."""
    content = yaml.safe_load(FLAGSHIP.read_text())
    most = 2**31 - 1
    content |= {"parallel": {"tp": 1, "pp": 1, "replicas": most}, "hardware": {"gpus": most}}
    content["limits"]["max_sequences"] = most
    with pytest.raises(
        ToolkitError, match=r"serving: the ports of 2147483647 replicas \(10 apart\) go up to 21474844462\."
    ):
        load(tmp_path, content)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "localhost", "gpu-node_7.cluster.local.", "a" * 63])
def test_hosts_that_may_be_listened_on(tmp_path: Path, host: str) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text())
    content["serving"] = {"host": host}
    assert load(tmp_path, content).serving.host == host


@pytest.mark.parametrize("name", ["a b.yaml", "é.yaml", "-x.yaml", "$(touch PWNED).yaml", "a\x1b[31m.yaml", "💥.yaml"])
def test_a_file_whose_name_is_none_of_a_deployment(tmp_path: Path, name: str) -> None:
    """It says how to name the deployment; with a name in it, it is one like any other."""
    file = tmp_path / name
    file.write_text(FLAGSHIP.read_text().replace("name: ", "# "))
    with pytest.raises(ToolkitError) as caught:
        load_deployment(file)
    line = str(caught.value)
    assert (
        line.isprintable()
        and ": the file name '" in line
        and "' cannot be the name of a deployment. Add `name: NAME`" in line
    )
    file.write_text(f"name: mine\n{file.read_text()}")
    assert load_deployment(file).name == "mine"


def test_an_output_that_is_a_dangling_link(tmp_path: Path) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text()) | {"output": "out"}
    (tmp_path / "out").symlink_to("gone")
    with pytest.raises(ToolkitError, match=r"x.yaml: output: '.*/out' is a link to '.*/gone', which is not there"):
        load(tmp_path, content)
    (tmp_path / "gone").mkdir()
    assert load(tmp_path, content).output == tmp_path / "gone"


def test_a_folder_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 - a name of bytes
    with pytest.raises(ToolkitError, match=r"its path is not UTF-8 text\. Rename the folder\.") as caught:
        load(Path(os.fsdecode(folder)), yaml.safe_load(FLAGSHIP.read_text()))
    assert str(caught.value).isprintable()
