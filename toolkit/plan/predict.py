"""Predicts what a deployment does under its traffic: the simulator runs it, and the SLO judges the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from toolkit.config.deployment import with_settings
from toolkit.errors import ToolkitError
from toolkit.inflight import SchedulerConfig
from toolkit.simulate import Simulation, simulate
from toolkit.simulate.capacity import Capacity, Saturation, Trial, requests_needed
from toolkit.simulate.overload import Overload, overload_of
from toolkit.simulate.usage import NOTHING
from toolkit.sizing.gpus import gpu_named
from toolkit.sizing.memory import MemoryPlan, plan_memory
from toolkit.sizing.node_link import node_link_of
from toolkit.sizing.precision import precision_of
from toolkit.slo.metrics import Measured
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.slo.target import Target, at_least, limits_of_a_request
from toolkit.slo.verdict import Verdict, judge, sum_up
from toolkit.steptimes.aiconfigurator import Aiconfigurator
from toolkit.steptimes.calibration import Calibration
from toolkit.steptimes.latency import ClosedForm, overheads_of
from toolkit.steptimes.step import StepTimes, StepWork, decode, prefill
from toolkit.workload import Traffic, traffic_of
from toolkit.workload.traffic import with_arrivals

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Estimator = Literal["table", "aiconfigurator"] | Calibration
Predict = Callable[["Deployment"], "Prediction"]


WITH_THE_QUEUE = ("ttft_ms", "e2e_ms")
"""Latencies that include the time in the queue."""
UNSTEADY = "no steady state"
BRIEF = 200
"""Requests to compare settings by, where only the order of the settings matters."""
NOT_SENT = ("brief", "_enough", "long_traffic", "_trial")
"""The parts of a prediction that are not sent to another process: the requests behind its results."""
FRONT_S = 0.002
"""Seconds per request, one after the other, for tokenizing and for Triton's Python models. Of 8 requests sent at once
the engine receives one every 1.8 ms (measured in a rehearsal of the 0.8M model, tensorrt_llm_bls, 2 cores)."""


@dataclass(frozen=True)
class Prediction:
    """Everything that is predicted for one deployment. Each part is computed when it is first asked for."""

    deployment: Deployment
    times: StepTimes
    estimator: str
    """Where the step times come from, in words."""
    front_s: float = FRONT_S
    """Seconds per request, one after the other, before it reaches its scheduler."""

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which gets the results without the requests behind them."""
        return {name: value for name, value in vars(self).items() if name not in NOT_SENT}

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_memory(self.deployment)

    @cached_property
    def traffic(self) -> Traffic:
        """The workload of the YAML. The users of a closed loop begin one by one."""
        traffic = traffic_of(self.deployment)
        if traffic.users is None:
            return traffic
        return traffic.starting_over(self._round_seconds(traffic), self.deployment.workload.seed)

    def _round_seconds(self, traffic: Traffic) -> float:
        """About how long a user waits for an answer: the prompts of all users, and the steps of one answer."""
        users = min(traffic.users or 1, self.deployment.limits.max_sequences)
        batch = math.ceil(users / (self.deployment.parallel.pp * self.deployment.parallel.replicas))
        prompt, output = _means(traffic)
        prompts = batch * max(self.times.stage_seconds(prefill(prompt))) * self.deployment.parallel.pp
        return prompts + output * self.pass_seconds(decode(batch, prompt + output / 2))

    @cached_property
    def simulation(self) -> Simulation:
        """The run of the workload as the YAML has it."""
        return self.simulate(self.traffic)

    @cached_property
    def measured(self) -> Measured:
        return self.simulation.measured(limits_of_a_request(self.deployment.slo))

    @cached_property
    def brief(self) -> Simulation:
        """The run of the first requests, to compare settings by."""
        closed = self.traffic.users is not None
        return self.simulation if closed else self.simulate(self.traffic.first(BRIEF))

    @cached_property
    def capacity(self) -> Capacity:
        _ = self.saturation  # computed once, for this and for its own users
        return self._trial.capacity()

    @cached_property
    def saturation(self) -> Saturation:
        return self._trial.saturation

    @cached_property
    def overload(self) -> Overload | None:
        """How much more arrives than is served, if it does. None for a closed loop, whose users wait."""
        if self.traffic.rate is None:
            return None
        steady_arrivals = with_arrivals(self.deployment.workload).arrivals != "trace"
        return overload_of(self.simulation, self.traffic.rate, self.saturation.throughput, steady_arrivals)

    def percentile(self, metric: str, q: float) -> float | None:
        """A percentile of a latency in ms. math.inf where it includes a queue that grows for as long as the load
        lasts."""
        if self.overload and metric in WITH_THE_QUEUE:
            return math.inf
        return self.measured.distributions[metric].percentile(q)

    def widened(self, low: float, high: float, most: float) -> tuple[float, float]:
        """The range (low, high) of the highest rates of other seeds, widened to hold the one of this prediction."""
        return self._trial.widened(low, high, most)

    def meets_at(self, rate: float) -> bool:
        """Whether every latency target and the compliance hold at `rate` requests/s."""
        return self._trial.meets(rate)

    @cached_property
    def _trial(self) -> Trial:
        replicas, slo = self.deployment.parallel.replicas, self.deployment.slo
        known = vars(self).get("saturation")
        return Trial(self.long_traffic, self.scheduling, self.times, replicas, slo, self.front_s, known)

    @cached_property
    def long_traffic(self) -> Traffic:
        """The traffic with enough requests to fill the deployment and go on; a short trace is repeated."""
        return self._enough.opened().repeated(self._needed) if self.repeats else self._enough

    @property
    def repeats(self) -> bool:
        """Whether the trace has too few requests to fill the deployment."""
        return len(self._enough.requests) < self._needed

    @property
    def _needed(self) -> int:
        return self.deployment.parallel.replicas * requests_needed(self.scheduling)

    @cached_property
    def _enough(self) -> Traffic:
        """As many requests as are needed, or all requests of a shorter trace."""
        if len(self.traffic.requests) >= self._needed:
            return self.traffic
        return traffic_of(with_settings(self.deployment, workload={"requests": self._needed}))

    @cached_property
    def scheduling(self) -> SchedulerConfig:
        return scheduling_of(self.deployment, self.memory, self.traffic)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Each target of the SLO, judged as the load test judges it."""
        judged = judge(self.deployment.slo, self.measured, server=self.seen(self.simulation)).targets
        return tuple(map(self._predicted, judged))

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict of the load test, computed for the predicted targets."""
        return sum_up(self.targets, self.measured)

    @property
    def meets_slo(self) -> bool:
        return self.verdict.meets_slo

    @property
    def balance(self) -> float:
        """The time of the slowest stage over the mean of all stages, in a full decode step."""
        seconds = self.times.stage_seconds(self.decode_work)
        return max(seconds) / (sum(seconds) / len(seconds))

    @property
    def prompt_tokens(self) -> int:
        """Mean length of the prompts."""
        return _means(self.traffic)[0]

    @property
    def output_tokens(self) -> int:
        return _means(self.traffic)[1]

    @property
    def prefill_work(self) -> StepWork:
        """One prompt of mean length, cut to what a step can hold."""
        return prefill(min(self.prompt_tokens, self.deployment.limits.max_num_tokens))

    @property
    def decode_work(self) -> StepWork:
        """A full micro-batch in the middle of its answers."""
        return decode(self.deployment.max_batch_size, self.prompt_tokens + self.output_tokens / 2)

    def pass_seconds(self, work: StepWork) -> float:
        """Seconds of the step through all stages, with no other step in flight."""
        return sum(self.times.stage_seconds(work)) + sum(self.times.hops(work))

    def simulate(self, traffic: Traffic, record: tuple[float, float] = NOTHING) -> Simulation:
        """Simulate other traffic under the same settings."""
        replicas = self.deployment.parallel.replicas
        return simulate(traffic, self.scheduling, self.times, replicas, record, front_s=self.front_s)

    def seen(self, run: Simulation) -> ServerSeen:
        """The GPU utilisation as a server's metrics would show it."""
        shares = [share for replica in run.utilisation for share in replica for _ in range(self.deployment.mapping.tp)]
        return ServerSeen(tuple(GpuSeen(str(number), share) for number, share in enumerate(shares)))

    def _predicted(self, target: Target) -> Target:
        """Complete the targets that judge() cannot know from samples: the highest rate, and a queue that keeps
        growing."""
        if self.overload and target.name.partition(".")[0] in WITH_THE_QUEUE:
            return replace(target, measured=math.inf, passed=False, margin=-math.inf, note=UNSTEADY)
        if self.overload and target.name == "compliance" and any(map(self._limited, WITH_THE_QUEUE)):
            return at_least(replace(target, measured=0.0, note=UNSTEADY))
        if target.name == "requests_per_s":
            saturated = self.capacity.saturated
            full = f"; saturates at {saturated:.1f}" if math.isfinite(saturated) else ""
            note = "" if self.capacity.highest else f"no rate meets the latencies{full}"
            return at_least(replace(target, measured=self.capacity.highest or 0.0, note=note))
        return target

    def _limited(self, metric: str) -> bool:
        return bool(self.deployment.slo.percentiles(metric))


def _means(traffic: Traffic) -> tuple[int, int]:
    """Mean numbers of prompt and output tokens."""
    count = len(traffic.requests)
    prompts, outputs = (len(r.prompt) for r in traffic.requests), (r.output_tokens for r in traffic.requests)
    return round(sum(prompts) / count), round(sum(outputs) / count)


def predict(deployment: Deployment, estimator: Estimator = "table") -> Prediction:
    """The prediction, with step times from the table of GPUs, the package aiconfigurator-core, or a calibration.

    Raises ToolkitError for a GPU without step times or that is too full, if the package is not installed, for a
    calibration of another deployment, and for a rehearsal without a calibration, which alone knows its step times.
    """
    if isinstance(estimator, Calibration):
        measured = "rehearsal" if not deployment.kind.on_gpus else "table refitted"
        front_s = FRONT_S if estimator.outside_s is None else estimator.outside_s
        return Prediction(deployment, estimator.step_times(deployment), f"{measured} by {estimator.path}", front_s)
    if not deployment.kind.on_gpus:
        hint = f"Run: {deployment.command('calibrate')}, then give its file with --calibration."
        raise ToolkitError("a rehearsal's step times are not known", where=deployment.file, hint=hint)
    gpu = gpu_named(deployment.hardware.gpu, where=deployment.file)
    if deployment.model.quantization == "fp8" and gpu.flops_fp8 is None:
        what = f"model.quantization: {gpu.name} has no FP8 tensor cores"
        raise ToolkitError(what, where=deployment.file, hint="Use none, or another GPU.")
    overheads = overheads_of(deployment.kind)
    precision, link = precision_of(deployment), node_link_of(deployment)
    form = ClosedForm(deployment.shape, deployment.mapping, gpu, precision, overheads, link)
    if estimator == "aiconfigurator":
        times = Aiconfigurator(form, deployment.file)
        return Prediction(deployment, times, times.description)
    source = "kernel times of this GPU" if gpu.measured else "data sheet, with the H100 SXM's efficiency"
    return Prediction(deployment, form, f"closed form, {source}")


def scheduling_of(deployment: Deployment, memory: MemoryPlan, traffic: Traffic) -> SchedulerConfig:
    """The settings of each replica's scheduler. Raises ToolkitError when its KV pool does not hold a whole sequence."""
    limits, block = deployment.limits, deployment.kv_cache.tokens_per_block
    blocks = deployment.kv_blocks if not deployment.kind.on_gpus else memory.pool_tokens // block
    if blocks * block < limits.max_seq_len:
        what = f"the KV pool holds {blocks * block:,} tokens, less than a sequence of limits.max_seq_len"
        hint = "Run toolkit plan --compare CONFIG to see the layouts that fit."
        raise ToolkitError(f"{what} {limits.max_seq_len:,}", where=deployment.file, hint=hint)
    return SchedulerConfig(
        max_batch_size=deployment.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        micro_batches=deployment.parallel.pp,
        num_blocks=blocks,
        tokens_per_block=block,
        policy=deployment.scheduler.policy,
        chunked_context=deployment.scheduler.chunked_context,
        # Prompts with nothing in common share no blocks. Not looking for shared ones halves the time of a simulation.
        reuse=deployment.kv_cache.reuse and traffic.shares_prefixes,
        max_queue_size=limits.max_queue_size,
        max_seq_len=limits.max_seq_len,
    )
