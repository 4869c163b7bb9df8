"""The PyTorch twin of a deployment with engines."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.commands import toolkit
from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.repository.migrate import migrate, twin_of

CONFIGS = Path(__file__).parents[2] / "build_configs"
FLAGSHIP = CONFIGS / "llama3-70b-h100-pp4tp2-fp16.yaml"


def run(*arguments: object):
    return CliRunner().invoke(cli, ["migrate", *map(str, arguments)])


def flagship(folder: Path, **changes: object) -> Path:
    file = folder / "flagship.yaml"
    content = yaml.safe_load(FLAGSHIP.read_text())
    file.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return file


def test_the_flagship_s_twin_is_checked_in():
    twin = twin_of(load_deployment(FLAGSHIP))
    assert twin.file == CONFIGS / "llama3-70b-h100-pp4tp2-fp16-pytorch.yaml"
    assert twin.text == twin.file.read_text()
    assert migrate(twin) is False


def test_all_but_the_engine_is_the_same(tmp_path):
    source = tmp_path / "x.yaml"
    shutil.copy(FLAGSHIP, source)
    assert run(source).exit_code == 0
    before, after = load_deployment(source), load_deployment(tmp_path / "x-pytorch.yaml")
    different = {name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)}
    assert different == {"engine", "name", "file", "output"}
    assert (after.engine, after.engine_options) == ("pytorch", before.engine_options)
    lines = [line for line in (tmp_path / "x-pytorch.yaml").read_text().splitlines()[1:] if "kind: pytorch" not in line]
    assert lines == [line for line in source.read_text().splitlines() if line != "engine: tensorrt"]


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("engine: tensorrt  # ours\n", "engine: {kind: pytorch, version: 1.2.1}  # ours\n"),
        ("engine: {kind: tensorrt, version: 1.1.0}\n", "engine: {kind: pytorch, version: 1.1.0}\n"),
        (
            "engine:\n  kind: tensorrt\n  version: 1.0.0\n  extra: {reduce_fusion: enable}  # faster\n# next\n",
            "engine: {kind: pytorch, version: 1.0.0}  # faster\n# next\n",
        ),
        ("engine: {kind: tensorrt, version: 0.20.0}\n", "engine: {kind: pytorch, version: 1.2.1}\n"),
    ],
)
def test_every_way_to_write_an_engine(tmp_path, text, engine):
    rest = FLAGSHIP.read_text().partition("engine: tensorrt\n")[2]
    source = tmp_path / "x.yaml"
    source.write_text(text + rest)
    assert run(source).exit_code == 0
    assert (tmp_path / "x-pytorch.yaml").read_text().partition("\n")[2] == engine + rest


def test_a_name_and_an_output_of_its_own(tmp_path):
    source = flagship(tmp_path, name="prod", output="/data/prod/")
    assert run(source, "--output", tmp_path / "twin.yaml").exit_code == 0
    twin = load_deployment(tmp_path / "twin.yaml")
    assert (twin.name, twin.output) == ("prod-pytorch", Path("/data/prod-pytorch"))


def test_what_goes_on_and_what_has_no_equivalent(tmp_path):
    source = flagship(tmp_path, engine={"kind": "tensorrt", "extra": {"reduce_fusion": "enable"}})
    answer = run(source, "--json", "--dry-run")
    assert answer.exit_code == 0
    changes = {change["setting"]: change for change in json.loads(answer.stdout)["changes"]}
    assert changes["--max_batch_size 16"]["twin"] == "max_batch_size: 16"
    assert changes["enable_kv_cache_reuse true"]["twin"] == "kv_cache_config.enable_block_reuse: True"
    assert changes["--reduce_fusion enable"]["twin"] is None and changes["--reduce_fusion enable"]["why"]
    assert all(change["twin"] or change["why"] for change in changes.values())
    assert not (tmp_path / "flagship-pytorch.yaml").exists()


def test_again(tmp_path):
    source = flagship(tmp_path)
    assert "written" in run(source).stderr
    assert "is up to date; nothing to do" in run(source).stderr
    (tmp_path / "flagship-pytorch.yaml").write_text("engine: mine\n")
    answer = run(source)
    assert isinstance(answer.exception, ToolkitError)
    assert "exists already and is not this twin. Give another: --output FILE" in str(answer.exception)
    assert (tmp_path / "flagship-pytorch.yaml").read_text() == "engine: mine\n"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"engine": "rehearsal"}, [], "engine: is rehearsal, expected tensorrt."),
        ({}, ["--output", "flagship.yaml"], "is the deployment itself"),
        ({}, ["--output", "no/such/folder.yaml"], "cannot be written"),
        (
            {"engine": {"kind": "tensorrt", "version": "1.0.0"}, "kv_cache": {"tokens_per_block": 64}},
            [],
            "kv_cache.tokens_per_block: 64 cannot be chosen in TensorRT-LLM 1.0",
        ),
    ],
)
def test_bad_input(tmp_path, monkeypatch, changes, options, message):
    monkeypatch.chdir(tmp_path)
    source = flagship(tmp_path, **changes)
    answer = toolkit("migrate", source, *options)
    assert answer.returncode == 1 and answer.stdout == ""
    assert message in answer.stderr and len(answer.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [source]
