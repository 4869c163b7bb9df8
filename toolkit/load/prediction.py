"""What the planner predicts for a load test: the requests that were sent, through the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.slo.metrics import LATENCIES, Measured
from toolkit.slo.prediction import Predicted, PredictedMetric
from toolkit.slo.run import Run
from toolkit.slo.sample import Sample
from toolkit.slo.target import limits_of_a_request
from toolkit.workload import Traffic
from toolkit.workload.traffic import Planned

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

COMPARED = (("ttft_ms", 50), ("ttft_ms", 99), ("tpot_ms", 50), ("tpot_ms", 99), ("e2e_ms", 50), ("e2e_ms", 99))


def predicted(deployment: Deployment, run: Run) -> Predicted:
    """The prediction next to the measurement. Prompts that share a prefix count as different prompts.

    Raises ToolkitError if there is no prediction: for a rehearsal without a calibration, for a GPU without figures, or
    if lengths of requests are unknown.
    """
    file = deployment.calibration_file
    if not deployment.kind.on_gpus and not file.is_file():
        raise ToolkitError("a rehearsal's step times are not known", where=deployment.file)
    known = [sample for sample in run.judged if sample.ok and sample.tokens_in and sample.tokens_out]
    if len(known) < len(run.judged):
        lost = len(run.judged) - len(known)
        raise ToolkitError(f"no prediction: the lengths of {lost} of {len(run.judged)} requests are not known")
    # Here, because a rehearsal without a calibration needs neither, and every process of the generator imports this.
    from toolkit.plan.predict import predict
    from toolkit.steptimes.calibration import load

    prediction = predict(deployment, load(file) if file.is_file() else "table")
    limits = limits_of_a_request(deployment.slo)
    runs = [prediction.simulate(traffic_that_ran(repeat)).samples[run.warmup :] for repeat in run.each]
    return Predicted(tuple(_rows(Measured.repeated(runs, limits), run.measured(limits))), prediction.estimator)


def traffic_that_ran(run: Run) -> Traffic:
    """The requests of a run as the simulator takes them, in the order in which they were due.

    A warm-up request that failed is left out: its lengths are not known, and the server did little for it.
    """
    sent: Sequence[Sample] = [sample for sample in run.samples if sample.tokens_in and sample.tokens_out]
    begin = min((sample.due for sample in sent), default=0.0)
    closed = run.settings.get("loop") == "closed"
    requests = tuple(
        Planned(sample.due - begin, _prompt(number, sample.tokens_in or 1), sample.tokens_out)
        for number, sample in enumerate(sent)
    )
    span = requests[-1].due if requests else 0.0
    users = int(run.settings["users"]) if closed else None
    return Traffic(requests, None if closed else (len(requests) - 1) / span if span else 1.0, users, False)


def _prompt(number: int, length: int) -> range:
    """Token ids that no other prompt has."""
    return range(number << 32, (number << 32) + length)


def _rows(simulated: Measured, measured: Measured) -> list[PredictedMetric]:
    rows = [
        PredictedMetric(
            f"{LATENCIES[metric]} P{q}",
            "ms",
            simulated.distributions[metric].percentile(q),
            measured.distributions[metric].percentile(q),
        )
        for metric, q in COMPARED
    ]
    rows.append(PredictedMetric("Output", "tokens/s", simulated.tokens_per_s, measured.tokens_per_s))
    return [*rows, PredictedMetric("Completed", "requests/s", simulated.requests_per_s, measured.requests_per_s)]
