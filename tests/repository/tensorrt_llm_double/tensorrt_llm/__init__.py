"""A stand-in for TensorRT-LLM's LLM API in tests: its names, its rules and its way of telling answers, on transformers.

What is told of each sequence is all of it, in each step, as there; arguments that it does not have are errors.

Its engine does what the files in the folder of LLM_DOUBLE_FAULTS say, of all replicas or of one (`step0`):
    hold            steps wait until the file is gone
    step            the next step fails, once, and with it every running request (PyExecutor._handle_errors)
    shutdown        the executor shuts down: it cancels what runs and refuses what comes (GenerationExecutorProxy)
"""

import asyncio
import ctypes
import json
import os
import sysconfig
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.releases.llm_api import llm_arguments


class RequestError(RuntimeError):
    """What one request ends with: of tensorrt_llm/executor/utils.py."""


@dataclass
class SamplingParams:
    max_tokens: int = 32
    min_tokens: int | None = None
    n: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    stop: list | None = None
    bad: list | None = None
    stop_token_ids: list | None = None
    end_id: int | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    logprobs: int | None = None
    return_perf_metrics: bool = False

    def __post_init__(self):
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")


@dataclass
class Output:
    index: int
    text: str = ""
    token_ids: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: str | None = None
    request_perf_metrics: object = None


class RequestOutput:
    """Asynchronously iterable: after each step with streaming, else once at the end; `outputs` are told whole."""

    def __init__(self, llm, ids, params, streaming):
        self.prompt_token_ids, self.finished = ids, False
        self.outputs = [Output(index) for index in range(params.n)]
        self._aborted = threading.Event()
        self._loop, self._steps = asyncio.get_running_loop(), asyncio.Queue()
        arguments = (llm, ids, params, streaming)
        threading.Thread(target=self._generate, args=arguments, daemon=True).start()

    def abort(self):
        _record({"cancelled": len(self.outputs[0].token_ids)})
        self._aborted.set()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.finished:
            raise StopAsyncIteration
        step = await self._steps.get()
        if isinstance(step, Exception):
            raise step
        self.outputs, self.finished = step
        return self

    def _tell(self, outputs, finished):
        # Copies, as the next step may come before this one was looked at.
        told = [Output(**{**vars(output), "token_ids": output.token_ids[:]}) for output in outputs]
        self._loop.call_soon_threadsafe(self._steps.put_nowait, (told, finished))

    def _generate(self, llm, ids, params, streaming):
        try:
            self._steps_of(llm, ids, params, streaming)
        except RequestError as error:
            self._loop.call_soon_threadsafe(self._steps.put_nowait, error)

    def _steps_of(self, llm, ids, params, streaming):
        outputs = self.outputs
        started = time.monotonic()
        with llm.counted():
            if max(ids) >= llm.vocab_size:
                raise RequestError("Token ID out of range")
            for output in outputs:
                while not output.finish_reason:
                    llm.step(ids, output, params, self._aborted)
                    if llm.is_shut_down:
                        self._aborted.set()
                    if self._aborted.is_set():
                        output.finish_reason = "cancelled"
                    elif len(output.token_ids) == params.max_tokens:
                        output.finish_reason = output.finish_reason or "length"
                    elif streaming and not output.finish_reason:
                        self._tell(outputs, False)
                if params.return_perf_metrics:
                    output.request_perf_metrics = _metrics(started)
                if streaming and output is not outputs[-1]:
                    self._tell(outputs, False)
        self._tell(outputs, True)


def _metrics(started):
    moments = ("arrival", "first_scheduled", "first_token", "last_token")
    times = {f"{name}_time": timedelta(seconds=started + place) for place, name in enumerate(moments)}
    blocks = {"num_total_allocated_blocks": 3, "num_new_allocated_blocks": 2, "num_reused_blocks": 1}
    cache = SimpleNamespace(**blocks, num_missed_blocks=2, kv_cache_hit_rate=0.25)
    return SimpleNamespace(timing_metrics=SimpleNamespace(**times), kv_cache_metrics=cache)


class LLM:
    def __init__(self, **arguments):
        known = llm_arguments(os.environ.get("LLM_DOUBLE_RELEASE", "1.2"))
        flat = {
            f"{name}.{key}" if key else name: inner
            for name, value in arguments.items()
            for key, inner in (value.items() if isinstance(value, dict) else [("", value)])
        }
        for name, value in flat.items():
            if name not in known:
                raise ValueError(f"{name}: Extra inputs are not permitted")
            if problem := known[name].problem(value):
                raise ValueError(f"{name}: {problem}")
        _record({"LLM": arguments})
        if "OMPI_COMM_WORLD_SIZE" in os.environ:
            _spawn(arguments["tensor_parallel_size"] * arguments["pipeline_parallel_size"])
        self.is_shut_down, self._failed_steps, self._faults = False, 0, os.environ.get("LLM_DOUBLE_FAULTS")
        self._model = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
        self.tokenizer = self  # encode, as of a TransformersTokenizer
        self.vocab_size = self._model.config.vocab_size
        self._lock, self._active, self._steps = threading.Lock(), 0, 0
        self._delay_s = float(os.environ.get("LLM_DOUBLE_STEP_S", 0))

    def encode(self, text):
        return self._tokenizer.encode(text)

    def generate_async(self, inputs, sampling_params, streaming=False):
        if self.is_shut_down:
            raise RuntimeError("LLM is shutting down")
        _record({"SamplingParams": asdict(sampling_params)})
        if "FAULT" in self._tokenizer.decode(inputs):
            raise RuntimeError("the executor\nis gone")
        return RequestOutput(self, inputs, sampling_params, streaming)

    def get_stats(self, timeout=2):
        assert timeout < 1
        cache = {"maxNumBlocks": 64, "freeNumBlocks": 60, "usedNumBlocks": 4, "tokensPerBlock": 32, "reusedBlocks": 7}
        batch = {
            "numScheduledRequests": self._active,
            "numContextRequests": 0,
            "numPausedRequests": 0,
            "numCtxTokens": 0,
        }
        step = {"iter": self._steps, "gpuMemUsage": 123, "kvCacheStats": cache, "inflightBatchingStats": batch}
        return [step] if self._steps else []

    def _told(self, what, once=False):
        """Whether a file says so; with `once` the file is removed by whoever sees it."""
        if self._faults is None:
            return False
        for name in (what, f"{what}{os.environ.get('TOOLKIT_REPLICA', '0')}"):
            file = Path(self._faults, name)
            if file.exists():
                if once:
                    file.unlink(missing_ok=True)
                return True
        return False

    def shutdown(self):
        _record({"shutdown": True})

    def counted(self):
        return _Counted(self)

    @torch.inference_mode()
    def step(self, ids, output, params, aborted):
        failed_steps = self._failed_steps
        time.sleep(self._delay_s)
        while self._told("hold") and not aborted.is_set():
            self._steps += 1  # it is at work, and slow
            time.sleep(0.02)
        self.is_shut_down = self.is_shut_down or self._told("shutdown")
        self._failed_steps += self._told("step", once=True)
        if self._failed_steps > failed_steps:
            raise RequestError("no kernel for this batch")
        with self._lock:
            logits = self._model(torch.tensor([ids + output.token_ids])).logits[0, -1]
        self._steps += 1
        log_probs = torch.log_softmax(logits, -1)
        ends = {*(params.stop_token_ids or ()), *([params.end_id] if params.end_id is not None else ())}
        if params.ignore_eos or len(output.token_ids) < (params.min_tokens or 0):
            log_probs[list(ends or [0])] = -torch.inf
        token = int(log_probs.argmax())
        output.token_ids.append(token)
        output.logprobs.append({token: SimpleNamespace(logprob=float(log_probs[token]), rank=1)})
        output.cumulative_logprob += float(log_probs[token])
        output.text = self._tokenizer.decode(output.token_ids, skip_special_tokens=True).rstrip(
            "\N{REPLACEMENT CHARACTER}"
        )
        for reason in (*(params.stop or ()), *ends):
            if output.text.endswith(reason) if isinstance(reason, str) else token == reason:
                output.finish_reason, output.stop_reason = "stop", reason


class _Counted:
    def __init__(self, llm):
        self._llm = llm

    def __enter__(self):
        self._llm._active += 1

    def __exit__(self, *_):
        self._llm._active -= 1


def _spawn(ranks):
    """Workers, as mpi4py's pool starts them: by the mpirun that started the server. They compute nothing here."""
    prefix = Path(sysconfig.get_path("scripts", vars={"base": os.environ["LLM_DOUBLE_PREFIX"]})).parent
    library = ctypes.CDLL(str(prefix / "lib" / "libmpi.so.40"), mode=ctypes.RTLD_GLOBAL)
    library.MPI_Init(None, None)
    names = ("ompi_mpi_info_null", "ompi_mpi_comm_self")
    null, alone = (ctypes.addressof(ctypes.c_char.in_dll(library, name)) for name in names)
    pointer, others = ctypes.c_void_p, ctypes.c_void_p()
    program = os.fsencode(Path(__file__).with_name("worker"))
    library.MPI_Comm_spawn(program, None, ranks, pointer(null), 0, pointer(alone), ctypes.byref(others), None)


def _record(event):
    if path := os.environ.get("LLM_DOUBLE_RECORD"):
        with Path(path).open("a") as file:
            print(json.dumps(event), file=file)
