"""The files of triton_repo as modules: they import their siblings by name, as they do inside Triton."""

import importlib
import sys

from toolkit.repository.generate import SOURCES

for folder in ("shared", "preprocessing/1", "tensorrt_llm_bls/1"):
    sys.path.append(str(SOURCES / folder))

answer = importlib.import_module("answer")
kept_traffic = importlib.import_module("kept_traffic")
latency = importlib.import_module("latency")
prompts = importlib.import_module("prompts")
token_text = importlib.import_module("token_text")
