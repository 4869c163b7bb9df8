"""How much of the toolkit a reader has to know to follow a command."""

from pathlib import Path

import yaml

from tests.files_entered import files_entered

MOST = 45


def test_a_build_of_the_tiny_rehearsal_enters_few_files(tmp_path: Path, tiny_llama: Path):
    root = Path(__file__).parents[2]
    content = yaml.safe_load((root / "build_configs/tiny-llama-rehearsal.yaml").read_text())
    content["model"]["path"], content["output"] = str(tiny_llama), str(tmp_path / "out")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    names = files_entered("build", tmp_path / "x.yaml")
    assert (tmp_path / "out/engine/rank7.engine").is_file()
    assert "engine/rehearsal/build.py" in names and "checkpoint/jobs.py" in names, "it counts, also in forked processes"
    assert len(names) <= MOST, names
