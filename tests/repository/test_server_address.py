"""Where tensorrt_llm_bls finds its own server: on the command line of its parent process."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "triton_repo" / "shared"
CHILD = "from server_address import http_address; print(*http_address())"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ([], "127.0.0.1 8000"),
        (["--http-port=9001"], "127.0.0.1 9001"),
        (["--http-port", "9001", "--grpc-port", "9002"], "127.0.0.1 9001"),
        (["--http-port=1", "--http-port=9001"], "127.0.0.1 9001"),  # NVIDIA's launcher gives the ports twice
        (["--http-address=0.0.0.0", "--http-port=9001"], "127.0.0.1 9001"),
        (["--http-address=10.1.2.3"], "10.1.2.3 8000"),
    ],
)
def test_address_on_the_command_line_of_the_parent(options, address):
    command = [sys.executable, "-c", PARENT, CHILD, *options]
    answer = subprocess.run(command, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=30)
    assert answer.stdout.strip() == address, answer.stderr
