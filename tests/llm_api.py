"""engine: pytorch without GPUs: a tritonserver as in the image, and the stand-in for the LLM API in a repository."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from toolkit.config.deployment import Deployment
from toolkit.repository import generate
from toolkit.serve import tritonserver

DOUBLE = Path(__file__).parent / "repository" / "tensorrt_llm_double" / "tensorrt_llm"
WORKER = """
import ctypes, os, sysconfig, time
from pathlib import Path
library = Path(sysconfig.get_path("scripts")).parent / "lib" / "libmpi.so.40"
ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL).MPI_Init(None, None)
print(f"worker {os.environ['OMPI_COMM_WORLD_RANK']} of GPUs {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)
while True:
    time.sleep(60)
"""


def put_tritonserver_on_path(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The wheel's, with what it needs to start."""
    server = tritonserver.find_tritonserver()
    program = folder / "bin" / "tritonserver"
    program.parent.mkdir()
    settings = "".join(f"export {name}='{value}'\n" for name, value in server.environment.items())
    # A link of this name, as what runs is told by its name.
    (program.parent / "real").mkdir()
    (program.parent / "real" / "tritonserver").symlink_to(server.binary)
    options = f'"$@" --backend-directory={server.backend_directory}'
    program.write_text(f"#!/bin/sh\n{settings}exec {program.parent}/real/tritonserver {options}\n")
    program.chmod(0o755)
    patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    patch.setenv("LLM_DOUBLE_PREFIX", sys.prefix)


def make_repository(deployment: Deployment) -> None:
    """Its repository, with the stand-in, which starts a worker for each rank by mpirun."""
    generate(deployment)
    double = deployment.repository_dir / "tensorrt_llm" / "1" / "tensorrt_llm"
    shutil.copytree(DOUBLE, double)
    (double / "worker").write_text(f"#!{sys.executable}\n{WORKER}")
    (double / "worker").chmod(0o755)
