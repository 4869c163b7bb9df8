"""Engines built from small models, and groups of real rank processes without Triton."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ports import free_port

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["toolkit.engine.rehearsal.worker"])  # imports torch once, not once a rank


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory):
    """make_llama(**LlamaConfig) -> directory of a random model whose logits differ clearly from each other."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 301, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256}

    def make(**config: Any) -> Path:
        torch.manual_seed(7)
        directory = tmp_path_factory.mktemp("llama")
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **config}))
        for name, parameter in model.named_parameters():
            scale = 0.3 if name.endswith("bias") else 0.12
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=scale)
        model.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def deploy(tmp_path_factory):
    """deploy(model, tp, pp, **sections of the YAML) -> Deployment, converted and built."""
    from toolkit.checkpoint import convert
    from toolkit.config.deployment import Deployment
    from toolkit.config.load import load_deployment
    from toolkit.engine import build

    def make(model: Path, tp: int = 1, pp: int = 1, dtype: str = "float32", **sections: Any) -> Deployment:
        folder = tmp_path_factory.mktemp("deployment")
        content = {
            "engine": "rehearsal",
            "model": {"path": str(model), "dtype": dtype},
            "parallel": {"tp": tp, "pp": pp},
            "limits": {"max_sequences": 8 * pp, "max_num_tokens": 64, "max_seq_len": 128},
            "kv_cache": {"tokens_per_block": 8},
            "hardware": {"gpus": 16},
            "output": str(folder),
            **sections,
        }
        (folder / "trial.yaml").write_text(yaml.safe_dump(content))
        deployment = load_deployment(folder / "trial.yaml")
        convert(deployment)
        build(deployment)
        return deployment

    return make


class Group:
    """An engine in this process and its other ranks in processes of their own."""

    def __init__(self, engine, workers: list[multiprocessing.Process]) -> None:
        self.engine, self.workers = engine, workers

    def submit(self, prompt: list[int], tokens: int, **options: Any) -> Answer:
        from toolkit.engine.request import GenerationRequest

        answer = Answer()
        request = GenerationRequest(input_ids=prompt, request_output_len=tokens, **options)
        answer.sequences = self.engine.submit([request], answer.events.put)
        return answer

    def generate(self, prompt: list[int], tokens: int, **options: Any) -> list[int]:
        return self.submit(prompt, tokens, **options).tokens()


class Answer:
    """What comes back for one request."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.sequences: list = []

    def wait(self, timeout_s: float = 60) -> list:
        """All events, to the last of each sequence."""
        events, unfinished = [], len(self.sequences)
        while unfinished:
            events.append(self.events.get(timeout=timeout_s))
            unfinished -= events[-1].finished
        return events

    def tokens(self) -> list[int]:
        return [event.token for event in self.wait()]


def start_workers(settings, port: int, work: Callable[..., None] | None = None) -> list[multiprocessing.Process]:
    """The ranks above 0, each in a process of its own; `work` is what they do instead of the engine's own loop."""
    if work is None:
        from toolkit.engine.rehearsal.worker import work

    ranks = range(1, settings.mapping.world_size)
    workers = [PROCESSES.Process(target=work, args=(settings, rank, port), daemon=True) for rank in ranks]
    for worker in workers:
        worker.start()
    return workers


@contextlib.contextmanager
def started(deployment, work: Callable[..., None] | None = None, **options: Any) -> Iterator[Group]:
    """A running group of a deployment; `options` are parameters of EngineSettings, `work` is for `start_workers`."""
    import torch

    from toolkit.engine.rehearsal.engine import RehearsalEngine
    from toolkit.engine.settings import EngineSettings

    settings = EngineSettings(gpt_model_path=deployment.engine_dir, **{"enable_chunked_context": True, **options})
    port, threads = free_port(), torch.get_num_threads()
    workers = start_workers(settings, port, work)
    try:
        engine = RehearsalEngine(settings, port)
        yield Group(engine, workers)
        engine.close()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0] * len(workers)
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.kill()
            worker.join()


@pytest.fixture(scope="session")
def tiny(tiny_llama, deploy):
    """The test model that recites, for one rank."""
    return deploy(tiny_llama)


@pytest.fixture(scope="module")
def group(tiny) -> Iterator[Group]:
    with started(tiny) as one:
        yield one


ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(tmp_path, monkeypatch) -> Path:
    """The double, as `trtllm-build` on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "trtllm-build"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.engine.trtllm_build_double "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return path


@pytest.fixture
def make(tmp_path, tiny_llama):
    """make(**changes of the YAML) -> Deployment of PP2 x TP2, converted; the same files whenever it is called."""

    from toolkit.checkpoint import convert
    from toolkit.config.deployment import Deployment
    from toolkit.config.load import load_deployment

    def load(engine: dict | None = None, converted: bool = True, **sections) -> Deployment:
        content = {
            "engine": {"kind": "tensorrt", "workers": 2, **(engine or {})},
            "model": {"path": str(tiny_llama)},
            "parallel": {"tp": 2, "pp": 2},
            "limits": {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256},
            "output": str(tmp_path / "out"),
            **sections,
        }
        (tmp_path / "trial.yaml").write_text(yaml.safe_dump(content))
        deployment = load_deployment(tmp_path / "trial.yaml")
        if converted:
            convert(deployment)
        return deployment

    return load
