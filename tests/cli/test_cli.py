"""The command line as a whole: it stays light, fails in one line, and its documentation is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.generate_cli import reference
from tests.commands import toolkit
from toolkit.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
NO_CONFIG = ("init", "sample", "ask", "verify", "lint", "known-truth")
"""Commands that are not of the form `toolkit COMMAND CONFIG`."""
HEAVIEST = ("torch", "numpy", "transformers", "tritonclient", "grpc", "locust", "matplotlib")
HEAVY = (*HEAVIEST, "pydantic", "rich", "yaml")


@pytest.fixture(autouse=True)
def _at_the_top(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "toolkit", "plan", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: nowhere.yaml: no such file. For examples: toolkit sample configs DIR\n"


def test_help_imports_nothing_heavy() -> None:
    """What keeps `toolkit --help` under 0.3 s; the time itself is in benchmarks/cli.md."""
    program = (
        "import sys; from click.testing import CliRunner; from toolkit.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['--help']); assert result.exit_code == 0, result\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_state_of_a_deployment_takes_no_client_and_no_numpy(tmp_path) -> None:
    """`status`, `stop` and `serve` import what makes repositories, for its digests alone."""
    content = yaml.safe_load((ROOT / "build_configs/tiny-llama-rehearsal.yaml").read_text())
    content |= {"model": {"path": str(ROOT / "tests/fixtures/tiny-llama")}, "output": str(tmp_path / "output")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    program = (
        "import sys; from click.testing import CliRunner; from toolkit.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['status', sys.argv[1]]); assert result.exit_code == 3, result\n"
        f"print([name for name in {HEAVIEST!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, tmp_path / "tiny.yaml"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = toolkit(command, "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) > 4


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in NO_CONFIG])
def test_a_missing_file_is_one_line(command: str) -> None:
    more = {"compare": ["nowhere.yaml"], "deploy": ["--to", "compose", "--output", "nowhere"]}
    result = toolkit(command, "nowhere.yaml", *more.get(command, []))
    assert (result.returncode, result.stdout) == (3 if command in ("loadtest", "compare", "drill") else 1, "")
    assert result.stderr == "error: nowhere.yaml: no such file. For examples: toolkit sample configs DIR\n"


def test_wrong_usage() -> None:
    assert toolkit("plane", "x.yaml").returncode == 2
    assert toolkit("plan").returncode == 2
    assert "No such option" in toolkit("plan", "x.yaml", "--quick").stderr


def test_an_unknown_engine_is_one_line() -> None:
    result = toolkit("plan", "build_configs/tiny-llama-rehearsal.yaml", "--engine", "vllm")
    assert result.stderr == "error: engine: 'vllm' is unknown. Use tensorrt, pytorch, rehearsal.\n"


def test_an_engine_that_cannot_be_built_here_says_so(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    text = (ROOT / "build_configs/tiny-llama-rehearsal.yaml").read_text()
    file.write_text(text.replace("../tests", str(ROOT / "tests")) + f"\noutput: {tmp_path}/work\n")
    result = toolkit("build", str(file), "--engine", "tensorrt")
    assert result.returncode == 1
    assert result.stderr.startswith("error: trtllm-build is not here. Run this inside nvcr.io/")
    assert not (tmp_path / "work").exists(), "it is said before the conversion, not after"


def test_a_dry_run_of_a_build_prints_its_command(tmp_path: Path) -> None:
    result = toolkit("build", "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml", "--dry-run")
    script = tmp_path / "build.sh"
    script.write_text(result.stdout)
    assert result.returncode == 0 and subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "  --max_batch_size 16\n" in result.stdout
    assert "limits.max_sequences 64 / (pp 4)" in result.stdout


def test_the_reference_is_current() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text() == reference(), "run: make docs"


def test_more_load_processes_than_the_machine_can_run() -> None:
    result = toolkit("loadtest", "build_configs/tiny-llama-rehearsal.yaml", "--processes", 20000)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert result.stderr.startswith("error: --processes: 20000 are more than this machine can run. Use at most ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--http", "--grpc"), "--http and --grpc contradict each other. Give one of them."),
        (("--find-capacity", "--sweep", "1"), "--find-capacity cannot be combined with --sweep."),
        (
            ("--web-ui", "--sweep", "1"),
            "--web-ui cannot be combined with --find-capacity or --sweep.",
        ),
        (
            ("--web-ui", "--find-capacity"),
            "--web-ui cannot be combined with --find-capacity or --sweep.",
        ),
    ],
)
def test_options_of_a_load_test_that_contradict_each_other(options: tuple[str, ...], message: str) -> None:
    result = toolkit("loadtest", "build_configs/tiny-llama-rehearsal.yaml", *options)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.endswith(f"Error: {message}\n")


def test_a_question_goes_over_one_protocol() -> None:
    result = toolkit("ask", "build_configs/tiny-llama-rehearsal.yaml", "Why?", "--http", "--grpc")
    assert result.returncode == 2 and "--http and --grpc contradict each other" in result.stderr


@pytest.mark.parametrize("rates", ["x", "1,,2", "nan", "1,1e99", "0"])
def test_rates_are_read_before_anything_else(rates: str) -> None:
    result = toolkit("loadtest", "nowhere.yaml", "--sweep", rates)
    assert result.returncode == 3
    assert "--sweep: expected rates as 1,2,4,8, each from 1e-06 to 1,000,000 requests/s, got" in result.stderr
