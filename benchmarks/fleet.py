"""How right the curve of one replica is for a fleet, and how fast a fleet is planned.

python benchmarks/fleet.py errors    # against the exact simulation of 4 nodes
python benchmarks/fleet.py speed     # 10,000 requests/s, and 1,000 nodes
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from toolkit.config.load import load_deployment
from toolkit.plan.fleet.curve import Load, load_of, share_of_one
from toolkit.plan.fleet.exact import simulate_fleet
from toolkit.plan.predict import Prediction, predict
from toolkit.simulate.one_of_many import simulate_one_of_many

CONFIG = Path(__file__).parents[1] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
NODES, REQUESTS = 4, 1000
ROUTERS = ("random", "power-of-two", "least-requests", "prefix-aware")
FIGURES = ("ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "tpot_ms.p99", "in_flight", "kv")


def errors(nodes: int = NODES, shares: tuple[float, ...] = (0.45, 0.6, 0.8)) -> None:
    """A row per router and rate: exact, curve, error in %."""
    prediction = predict(load_deployment(CONFIG))
    saturated = prediction.saturation.throughput
    print(f"| router, {nodes} nodes | requests/s of each |", " | ".join(FIGURES), "|")
    print("|---|---|" + "---|" * len(FIGURES))
    for share in shares:
        for router in ROUTERS:
            exact, curve = both(prediction, router, nodes, share * saturated)
            cells = []
            for name in FIGURES:
                true, looked_up = exact.figure(name), curve.figure(name)
                cells.append(f"{true:.3g}, {looked_up:.3g}: {looked_up / true - 1:+.0%}")
            print(f"| {router} | {share * saturated:.2f} |", " | ".join(cells), "|", flush=True)


def both(prediction: Prediction, router: str, nodes: int, rate: float) -> tuple[Load, Load]:
    """The figures of the exact simulation, and those of one replica in a fleet of so many."""
    exact = simulate_fleet(prediction, router, nodes, rate * nodes, REQUESTS)
    traffic = share_of_one(prediction, router, nodes)
    config, times, front_s = prediction.scheduling, prediction.times, prediction.front_s
    one = simulate_one_of_many(traffic, config, times, rate, router, front_s)
    return load_of(exact, rate, prediction), load_of(one, rate, prediction)


def speed() -> None:
    """Wall time, CPU time and peak memory of the command, with its worker processes."""
    for question in (["--rate", "10000"], ["--nodes", "1000"]):
        command = [sys.executable, "-m", "toolkit", "plan", str(CONFIG), "--fleet", *question]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        wall = time.monotonic() - start
        print(f"{' '.join(question)}: {wall:.0f} s, CPU {cpu:.0f} s, largest process {after.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    {"errors": errors, "speed": speed}[sys.argv[1]]()
