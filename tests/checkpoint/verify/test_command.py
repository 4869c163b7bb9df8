"""`toolkit verify` and `toolkit convert --verify` as commands."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.checkpoint.verify.test_tampering import flipped_bit, gate_and_up, nan
from tests.commands import toolkit


def test_the_same(pristine, llama):
    done = toolkit("verify", pristine, "--against", llama)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, last = done.stdout.splitlines()
    assert first.startswith("bytes: ") and first.endswith("in 4 rank files; 0 elements in 0 tensors differ")
    assert "on 41 tokens of 3 prompts (random token ids, as there is no tokenizer.json); the same greedy" in second
    assert last == f"{pristine}: bytes and meaning as in {llama}"


def test_a_difference_is_exit_code_1(checkpoint, llama):
    gate_and_up(checkpoint)
    done = toolkit("verify", checkpoint, "--against", llama, "--bytes")
    assert done.returncode == 1
    assert "gate and up are exchanged" in done.stdout
    assert "meaning" not in done.stdout
    assert done.stdout.endswith(f"{checkpoint}: DIFFERS from {llama}\n")


def test_json_for_machines(checkpoint, llama):
    flipped_bit(checkpoint)
    done = toolkit("verify", checkpoint, "--against", llama, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["same"], report["bytes"]["different_elements"], report["meaning"]["greedy_differences"]) == (
        False,
        1,
        0,
    )
    assert report["differences"][0]["index"] == [17, 31]


def test_json_has_no_numbers_that_are_none(checkpoint, llama):
    nan(checkpoint)
    done = toolkit("verify", checkpoint, "--against", llama, "--bytes", "--json")
    report = json.loads(done.stdout, parse_constant=pytest.fail)
    assert report["differences"][0]["found"] == "nan"


def test_only_the_meaning(checkpoint, llama):
    flipped_bit(checkpoint)
    done = toolkit("verify", checkpoint, "--against", llama, "--meaning", "--json")
    assert (done.returncode, json.loads(done.stdout)["bytes"]) == (0, None)


def test_both_parts_by_name_are_both(checkpoint, llama):
    flipped_bit(checkpoint)
    done = toolkit("verify", checkpoint, "--against", llama, "--bytes", "--meaning", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["bytes"]["different_elements"]) == (1, 1)
    assert report["meaning"]["greedy_differences"] == 0


def test_prompts_need_the_meaning(pristine, llama):
    done = toolkit("verify", pristine, "--against", llama, "--bytes", "--prompt", "Hello")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "Error: --prompt is for --meaning: add it, or leave out --bytes."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "Hello"], "tokenizer.json: no such file. Add the model's tokenizer.json"),
        (["--against", "nowhere"], "error: no config.json in nowhere: No such file or directory."),
    ],
)
def test_mistakes_are_one_line(pristine, llama, arguments, message):
    done = toolkit("verify", pristine, "--against", llama, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_directory_that_is_no_checkpoint(llama):
    done = toolkit("verify", "nowhere", "--against", llama)
    assert done.stderr == (
        "error: nowhere/config.json: no such file. Give the directory of a TensorRT-LLM checkpoint.\n"
    )


def test_logits_of_a_run_that_was_helped_are_not_shown(checkpoint, llama):
    gate_and_up(checkpoint)
    done = toolkit("verify", checkpoint, "--against", llama, "--meaning", "--json")
    report = json.loads(done.stdout)
    assert [each["where"] for each in report["differences"]] == ["layer 3 (stage 0)"]
    assert (report["meaning"]["logits_error"], report["meaning"]["greedy_differences"]) == (None, None)


@pytest.mark.slow
def test_convert_verifies_also_what_was_there(llama, deploy):
    deployment = deploy(llama, 2, 2)
    done = toolkit("convert", deployment.file, "--verify")
    assert done.returncode == 0
    assert "already converted" in done.stderr and f"bytes and meaning as in {llama}" in done.stderr
    assert done.stdout == f"{deployment.checkpoint_dir}\n"
    flipped_bit(deployment.checkpoint_dir)  # as large as before, so nothing else notices
    done = toolkit("convert", deployment.file, "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 of 3072 elements differ" in done.stderr


def test_build_from_another_tools_checkpoint(llama, deploy, pristine, tmp_path):
    deployment = deploy(llama, 2, 2)
    shutil.rmtree(deployment.checkpoint_dir)
    shutil.copytree(pristine, tmp_path / "foreign", ignore=shutil.ignore_patterns("lock.json"))
    done = toolkit("build", deployment.file, "--checkpoint", tmp_path / "foreign")
    assert (done.returncode, done.stdout) == (0, f"{deployment.engine_dir}\n")
    assert not deployment.checkpoint_dir.exists(), "nothing is converted"


def test_names_in_a_checkpoint_do_nothing_to_the_terminal(checkpoint, llama):
    """A header of safetensors may name a tensor as it likes."""
    file = checkpoint / "rank0.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    renamed = {("\x1b[2J\n" + "x" * 900 if name == first else name): entry for name, entry in header.items()}
    text = json.dumps(renamed).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    done = toolkit("verify", checkpoint, "--against", llama, "--bytes")
    assert done.returncode == 1 and r"\x1b[2J" in done.stdout
    assert all(line.isprintable() and len(line) < 1100 for line in done.stdout.splitlines())
