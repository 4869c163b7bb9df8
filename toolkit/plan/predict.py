"""What a deployment will do under its traffic: the simulator's run of it, judged by its SLO."""

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
from toolkit.simulate.run import NOTHING
from toolkit.sizing.gpus import gpu_named
from toolkit.sizing.memory import MemoryPlan, plan_memory
from toolkit.sizing.precision import precision_of
from toolkit.slo.metrics import Measured
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.slo.target import Target, at_least, limits_of_a_request
from toolkit.slo.verdict import Verdict, judge, sum_up
from toolkit.steptimes.aiconfigurator import Aiconfigurator
from toolkit.steptimes.calibration import Calibration
from toolkit.steptimes.latency import ClosedForm
from toolkit.steptimes.step import StepTimes, StepWork, decode, prefill
from toolkit.workload import Traffic, traffic_of
from toolkit.workload.traffic import with_arrivals

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Estimator = Literal["table", "aiconfigurator"] | Calibration
Predict = Callable[["Deployment"], "Prediction"]


WITH_THE_QUEUE = ("ttft_ms", "e2e_ms")
"""Latencies in which the time in the queue is."""
UNSTEADY = "no steady state"
BRIEF = 200
"""Requests that settings are compared by, where their order is enough."""
NOT_SENT = ("brief", "_enough", "long_traffic", "_trial")
"""What another process does not get of a prediction: the requests that its results came of."""
FRONT_S = 0.002
"""Each request, one after the other: tokenizing and the way through Triton's Python models. Of 8 sent at once the
engine has one every 1.8 ms (measured in a rehearsal of the 0.8M model, tensorrt_llm_bls, 2 cores)."""


@dataclass(frozen=True)
class Prediction:
    """Everything that is predicted of one deployment. Made once; each part is computed when it is asked for."""

    deployment: Deployment
    times: StepTimes
    estimator: str
    """Where the step times are from, in words."""
    front_s: float = FRONT_S
    """Of each request, one after the other, before its scheduler has it."""

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which gets the results and not the requests that they came of."""
        return {name: value for name, value in vars(self).items() if name not in NOT_SENT}

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_memory(self.deployment)

    @cached_property
    def traffic(self) -> Traffic:
        """The workload of the YAML. Users of a closed loop do not begin together."""
        traffic = traffic_of(self.deployment)
        if traffic.users is None:
            return traffic
        return traffic.starting_over(self._round_seconds(traffic), self.deployment.workload.seed)

    def _round_seconds(self, traffic: Traffic) -> float:
        """About how long each user waits for an answer: all users' prompts, and the steps of one answer."""
        users = min(traffic.users or 1, self.deployment.limits.max_sequences)
        batch = math.ceil(users / (self.deployment.parallel.pp * self.deployment.parallel.replicas))
        prompt, output = _means(traffic)
        prompts = batch * max(self.times.stage_seconds(prefill(prompt))) * self.deployment.parallel.pp
        return prompts + output * self.pass_seconds(decode(batch, prompt + output / 2))

    @cached_property
    def simulation(self) -> Simulation:
        """The workload as the YAML has it, with a second of the timeline from its middle."""
        return self.simulate(self.traffic)

    @cached_property
    def measured(self) -> Measured:
        return self.simulation.measured(limits_of_a_request(self.deployment.slo))

    @cached_property
    def brief(self) -> Simulation:
        """The beginning of the workload, to compare settings by."""
        closed = self.traffic.users is not None
        return self.simulation if closed else self.simulate(self.traffic.first(BRIEF))

    @cached_property
    def capacity(self) -> Capacity:
        _ = self.saturation  # kept for those who ask for it alone
        return self._trial.capacity()

    @cached_property
    def saturation(self) -> Saturation:
        return self._trial.saturation

    @cached_property
    def overload(self) -> Overload | None:
        """What comes and what is served, where more comes. None of a closed loop, whose users wait."""
        if self.traffic.rate is None:
            return None
        steady_arrivals = with_arrivals(self.deployment.workload).arrivals != "trace"
        return overload_of(self.simulation, self.traffic.rate, self.saturation.throughput, steady_arrivals)

    def percentile(self, metric: str, q: float) -> float | None:
        """Of a latency, ms. math.inf where the queue is part of it and grows for as long as the load lasts."""
        if self.overload and metric in WITH_THE_QUEUE:
            return math.inf
        return self.measured.distributions[metric].percentile(q)

    def widened(self, low: float, high: float, most: float) -> tuple[float, float]:
        """The range of the highest rates that predictions of the same kind have, and this one."""
        return self._trial.widened(low, high, most)

    def meets_at(self, rate: float) -> bool:
        """Whether every latency target and the compliance hold when so many requests/s come."""
        return self._trial.meets(rate)

    @cached_property
    def _trial(self) -> Trial:
        replicas, slo = self.deployment.parallel.replicas, self.deployment.slo
        known = vars(self).get("saturation")
        return Trial(self.long_traffic, self.scheduling, self.times, replicas, slo, self.front_s, known)

    @cached_property
    def long_traffic(self) -> Traffic:
        """The traffic with enough requests to fill the deployment and go on; a short trace is sent again and again."""
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
        """As many requests as are needed; of a trace, all that it has."""
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
        """The load test's own verdict, on the predicted targets."""
        return sum_up(self.targets, self.measured)

    @property
    def meets_slo(self) -> bool:
        return self.verdict.meets_slo

    @property
    def balance(self) -> float:
        """The slowest stage's time over the mean, in a full decode step."""
        seconds = self.times.stage_seconds(self.decode_work)
        return max(seconds) / (sum(seconds) / len(seconds))

    @property
    def prompt_tokens(self) -> int:
        """Mean of the traffic's prompts."""
        return _means(self.traffic)[0]

    @property
    def output_tokens(self) -> int:
        return _means(self.traffic)[1]

    @property
    def prefill_work(self) -> StepWork:
        """One mean prompt, as far as a step takes it."""
        return prefill(min(self.prompt_tokens, self.deployment.limits.max_num_tokens))

    @property
    def decode_work(self) -> StepWork:
        """A full micro-batch in the middle of its answers."""
        return decode(self.deployment.max_batch_size, self.prompt_tokens + self.output_tokens / 2)

    def pass_seconds(self, work: StepWork) -> float:
        """The step through all stages with nothing in its way."""
        return sum(self.times.stage_seconds(work)) + (self.times.stages - 1) * self.times.hop_seconds(work)

    def simulate(self, traffic: Traffic, record: tuple[float, float] = NOTHING) -> Simulation:
        """A run of other traffic under the same settings."""
        replicas = self.deployment.parallel.replicas
        return simulate(traffic, self.scheduling, self.times, replicas, record, front_s=self.front_s)

    def seen(self, run: Simulation) -> ServerSeen:
        """What a server's metrics would show of the GPUs."""
        shares = [share for replica in run.utilisation for share in replica for _ in range(self.deployment.mapping.tp)]
        return ServerSeen(tuple(GpuSeen(str(number), share) for number, share in enumerate(shares)))

    def _predicted(self, target: Target) -> Target:
        """Targets that judge() cannot know from samples: what could be served, and a queue that grows and grows."""
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
    """Mean prompt and output tokens."""
    count = len(traffic.requests)
    prompts, outputs = (len(r.prompt) for r in traffic.requests), (r.output_tokens for r in traffic.requests)
    return round(sum(prompts) / count), round(sum(outputs) / count)


def predict(deployment: Deployment, estimator: Estimator = "table") -> Prediction:
    """The prediction, with step times from the table of GPUs, the package aiconfigurator-core, or a calibration.

    Raises ToolkitError for a GPU that has none, for one that is too full, where the package is not installed, for a
    calibration of something else, and for a rehearsal without one: only that knows this machine's step times.
    """
    if isinstance(estimator, Calibration):
        measured = "rehearsal" if not deployment.kind.on_gpus else "table refitted"
        front_s = FRONT_S if estimator.outside_s is None else estimator.outside_s
        return Prediction(deployment, estimator.step_times(deployment), f"{measured} by {estimator.path}", front_s)
    if not deployment.kind.on_gpus:
        hint = f"Run: toolkit calibrate {deployment.file}, and give its file as --calibration."
        raise ToolkitError("a rehearsal's step times are not known", where=deployment.file, hint=hint)
    gpu = gpu_named(deployment.hardware.gpu, where=deployment.file)
    if deployment.model.quantization == "fp8" and gpu.flops_fp8 is None:
        what = f"model.quantization: {gpu.name} has no FP8 tensor cores"
        raise ToolkitError(what, where=deployment.file, hint="Use none, or another GPU.")
    form = ClosedForm(deployment.shape, deployment.mapping, gpu, precision_of(deployment))
    if estimator == "aiconfigurator":
        times = Aiconfigurator(form, deployment.file)
        return Prediction(deployment, times, times.description)
    source = "kernel times of this GPU" if gpu.measured else "data sheet, with the H100 SXM's efficiency"
    return Prediction(deployment, form, f"closed form, {source}")


def scheduling_of(deployment: Deployment, memory: MemoryPlan, traffic: Traffic) -> SchedulerConfig:
    """What the executor of each replica is set to. Raises ToolkitError when its KV pool holds no whole sequence."""
    limits, block = deployment.limits, deployment.kv_cache.tokens_per_block
    blocks = deployment.kv_blocks if not deployment.kind.on_gpus else memory.pool_tokens // block
    if blocks * block < limits.max_seq_len:
        what = f"the KV pool holds {blocks * block:,} tokens, less than a sequence of limits.max_seq_len"
        hint = "toolkit plan --compare CONFIG shows layouts that fit."
        raise ToolkitError(f"{what} {limits.max_seq_len:,}", where=deployment.file, hint=hint)
    return SchedulerConfig(
        max_batch_size=deployment.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        micro_batches=deployment.parallel.pp,
        num_blocks=blocks,
        tokens_per_block=block,
        policy=deployment.scheduler.policy,
        chunked_context=deployment.scheduler.chunked_context,
        # Prompts that have nothing in common find nothing; not to look for it halves the simulation's time.
        reuse=deployment.kv_cache.reuse and traffic.shares_prefixes,
        max_queue_size=limits.max_queue_size,
        max_seq_len=limits.max_seq_len,
    )
