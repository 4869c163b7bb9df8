"""The kinds of engine. Other modules ask a kind for a fact; none compares its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineKind:
    """One kind of engine, as `engine:` in a deployment file names it."""

    name: str
    on_gpus: bool
    """False: the ranks run on CPU cores, and only a calibration knows their step times."""
    engine_files: bool
    """`toolkit build` makes engine files. False: the engine loads the Hugging Face model itself."""
    vendor_build: bool
    """trtllm-build makes these files."""
    one_server: bool
    """One server starts all ranks as its workers. False: mpirun starts one server per rank, unless serving.mode is
    orchestrator."""
    triton_backend: str
    """The Triton backend that runs it."""
    models: Mapping[str, tuple[str, ...]]
    """The Python models in its repository, each with the folders of `triton_repo/` that its files come from."""


_AROUND = {name: (f"{name}/1", "shared") for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls")}
_EXECUTOR = "tensorrt_llm"
TENSORRT = EngineKind(
    name="tensorrt",
    on_gpus=True,
    engine_files=True,
    vendor_build=True,
    one_server=False,
    triton_backend="tensorrtllm",
    models=_AROUND,
)
PYTORCH = EngineKind(
    name="pytorch",
    on_gpus=True,
    engine_files=False,
    vendor_build=False,
    one_server=True,
    triton_backend="python",
    models={_EXECUTOR: ("llmapi/1", "shared"), "tensorrt_llm_bls": ("llmapi_bls/1", "shared")},
)
REHEARSAL = EngineKind(
    name="rehearsal",
    on_gpus=False,
    engine_files=True,
    vendor_build=False,
    one_server=False,
    triton_backend="python",
    models={**_AROUND, _EXECUTOR: (f"{_EXECUTOR}/1", "shared")},
)
KINDS = {kind.name: kind for kind in (TENSORRT, PYTORCH, REHEARSAL)}
"""By name, in the order in which messages list them."""
