"""Directories appear whole or not at all, and their lock tells what they were made from."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.files import artifacts


def make(directory: Path, content: str = "x", settings: dict | None = None) -> bool:
    return artifacts.write_stage(
        directory,
        "thing",
        inputs={"source": "1"},
        settings=settings or {"tp": 2},
        versions={"toolkit": "0"},
        write=lambda partial: (partial / "file").write_text(content),
    )


def test_made_once_and_again_only_when_something_changed(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    assert make(target) is True
    assert make(target, content="never written") is False
    assert (target / "file").read_text() == "x"
    assert make(target, content="y", settings={"tp": 4}) is True
    assert (target / "file").read_text() == "y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thing"]


def test_a_damaged_directory_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    make(target)
    (target / "file").write_text("longer")
    assert make(target) is True


def test_a_failure_leaves_the_old_one_and_no_partial(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    make(target)

    def fail(partial: Path) -> None:
        (partial / "file").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        artifacts.write_stage(target, "thing", inputs={}, settings={}, versions={}, write=fail)
    assert (target / "file").read_text() == "x"
    assert not (tmp_path / "thing.partial").exists()


def test_kill_9_while_writing_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from toolkit import artifacts\n"
        "def write(partial):\n"
        "    (partial / 'file').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        "artifacts.write_stage(Path(sys.argv[1]), 'thing', inputs={}, settings={}, versions={}, write=write)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path / "thing"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "thing").exists()
    assert make(tmp_path / "thing") is True


def test_require_names_what_differs(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    with pytest.raises(ToolkitError, match=r"there is no thing here\. Run: toolkit make"):
        artifacts.require(target, "thing", {}, "toolkit make")
    make(target)
    assert artifacts.require(target, "thing", {"tp": 2}, "toolkit make").digest
    with pytest.raises(ToolkitError, match="was made with tp 2, the deployment says 4"):
        artifacts.require(target, "thing", {"tp": 4}, "toolkit make")
    with pytest.raises(ToolkitError, match="holds a thing, expected: engine"):
        artifacts.require(target, "engine", {}, "toolkit make")
    (target / "file").unlink()
    with pytest.raises(ToolkitError, match="file is missing"):
        artifacts.require(target, "thing", {"tp": 2}, "toolkit make")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    digests = set()
    for content in ("x", "y"):
        target = tmp_path / content
        make(target, content)
        lock = artifacts.read_lock(target)
        assert lock is not None
        digests.add(lock.digest)
    assert len(digests) == 2


WHOLE = {"stage": "thing", "inputs": {}, "settings": {}, "versions": {}, "outputs": {"x": {"size": 1}}, "seen": {}}
BROKEN = [
    ("", "is not valid JSON: "),
    ("{", "is not valid JSON: "),
    ("[" * 100_000, "is not valid JSON: "),
    ("[]", "holds a JSON list, expected an object"),
    ('{"stage": 1}', "stage: expected text, got 1"),
    *[
        (json.dumps(WHOLE | {name: value}), f"{name}: expected an object, got {value!r}")
        for name in ("inputs", "settings", "versions", "outputs", "seen")
        for value in (5, "x", [1])
    ],
    (json.dumps(WHOLE | {"outputs": {"x": 5}}), "outputs.x: expected an object with a size, got 5"),
    (
        json.dumps(WHOLE | {"outputs": {"x": {"size": "1"}}}),
        "outputs.x: expected an object with a size, got {'size': '1'}",
    ),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=lambda value: value[:40])
def test_a_broken_lock_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lock.json").write_text(content)
    with pytest.raises(ToolkitError) as caught:
        artifacts.require(tmp_path, "thing", {}, "toolkit make")
    assert f"{tmp_path}/lock.json: {message}" in str(caught.value)
    assert str(caught.value).endswith(". Delete the directory and make it again.")


@pytest.mark.parametrize("link", ["/dev/zero", "lock.json"])
def test_a_lock_that_has_no_end(tmp_path: Path, link: str) -> None:
    (tmp_path / "lock.json").symlink_to(link)
    with pytest.raises(
        ToolkitError, match=r"lock.json: (is a device, expected a file|cannot be read: Too many levels)"
    ):
        artifacts.read_lock(tmp_path)


def test_a_lock_of_a_later_release_may_have_more(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(json.dumps(WHOLE | {"more": 5}))
    assert artifacts.read_lock(tmp_path).stage == "thing"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ToolkitError, match="cannot be written: "):
        make(tmp_path / "file" / "thing")


def test_the_lock_is_readable(tmp_path: Path) -> None:
    make(tmp_path / "thing")
    lock = json.loads((tmp_path / "thing" / "lock.json").read_text())
    assert lock["outputs"]["file"]["size"] == 1


def test_what_the_toolkit_did_not_make_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "thesis.txt").write_text("ten years of work")
    with pytest.raises(
        ToolkitError, match=r"checkpoint: holds thesis\.txt and no lock\.json: the toolkit did not make"
    ):
        make(target)
    assert (target / "thesis.txt").read_text() == "ten years of work"
    (target / "thesis.txt").unlink()
    assert make(target) is True, "an empty directory may be replaced"


def test_a_file_in_the_place_of_the_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("mine")
    with pytest.raises(ToolkitError, match="checkpoint: cannot be written: Not a directory"):
        make(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_text() == "mine"
