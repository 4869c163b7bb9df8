"""Steps of real ranks: their times say which stage was slow, and predict steps that were not in the fit."""

import contextlib
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.calibrate.slow_rank import SLEPT_S, LateSecondRank, SlowSecondRank
from tests.commands import toolkit
from toolkit.calibrate import calibrate, planned
from toolkit.calibrate.grid import Context, StepPlan, grid
from toolkit.calibrate.steps import engine_settings, time_steps
from toolkit.config.deployment import with_settings
from toolkit.errors import ToolkitError
from toolkit.steptimes.calibration import model_of, parse
from toolkit.steptimes.calibration_file import FORMAT

ROOT = Path(__file__).parents[2]
FEW = [StepPlan(generations=(30,)), StepPlan((Context(0, 20),)), StepPlan((Context(0, 16),), (9, 9, 9))]


def quiet(done: int, total: int) -> None:
    pass


def command(deployment, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "toolkit", "calibrate", str(deployment.file), *arguments]


@pytest.mark.thorough
def test_a_rank_that_is_slowed_shows_in_the_time_of_its_stage(tiny_llama, deploy):
    """And only there."""
    deployment = deploy(tiny_llama, pp=2)
    found = time_steps(deployment, 1.0, quiet, FEW[:1], SlowSecondRank)
    (row,) = found["rows"]
    first, second = row["stage_seconds"]
    assert SLEPT_S < second < SLEPT_S + 0.15
    assert first < SLEPT_S / 2
    assert row["hop_seconds"] < SLEPT_S / 2 and row["finish_seconds"] < SLEPT_S / 2
    parts = first + second + row["hop_seconds"] + row["finish_seconds"]
    assert row["step_seconds"] == pytest.approx(parts, abs=0.05)


@pytest.mark.thorough
def test_a_rank_that_comes_to_its_end_late_takes_no_time_from_the_next_stage(tiny_llama, deploy):
    (row,) = time_steps(deploy(tiny_llama, pp=3), 1.0, quiet, FEW[:1], LateSecondRank)["rows"]
    assert all(seconds > 0 for seconds in row["stage_seconds"])
    assert row["stage_seconds"][1] < SLEPT_S / 2


@pytest.mark.thorough
def test_a_slow_rank_of_a_stage_makes_the_stage_slow(tiny_llama, deploy):
    (row,) = time_steps(deploy(tiny_llama, tp=2), 1.0, quiet, FEW[:1], SlowSecondRank)["rows"]
    assert len(row["stage_seconds"]) == 1 and row["stage_seconds"][0] > SLEPT_S


def test_without_an_engine_it_says_which_command_makes_one(tiny_llama, deploy):
    deployment = deploy(tiny_llama)
    (deployment.engine_dir / "lock.json").unlink()
    result = toolkit("calibrate", deployment.file)
    assert result.returncode == 1
    assert result.stderr.endswith(f"engine: there is no engine here. Run: toolkit build {deployment.file}\n")
    assert not (deployment.output / "calibration.json").exists()


def test_an_engine_of_another_split_is_refused(tiny_llama, deploy):
    deployment = deploy(tiny_llama)
    other = deployment.model_copy(update={"parallel": deployment.parallel.model_copy(update={"tp": 2})})
    with pytest.raises(ToolkitError, match=r"engine: was built for tp 1 x pp 1, .* tp 2 x pp 1. Run: toolkit build"):
        engine_settings(other)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_broken_rank_file_is_one_line(tiny_llama, deploy, rank):
    deployment = deploy(tiny_llama, pp=2)
    path = deployment.engine_dir / f"rank{rank}.engine"
    data = path.read_bytes()
    path.unlink()  # a hard link of the checkpoint's
    path.write_bytes(b"\xff" * len(data))
    with pytest.raises(ToolkitError, match=rf"rank{rank}.engine: cannot be read"):
        time_steps(deployment, 1.0, quiet, FEW)


def test_a_dry_run_lists_the_steps_and_writes_nothing(tiny_llama, deploy):
    deployment = deploy(tiny_llama)
    result = toolkit("calibrate", deployment.file, "--dry-run")
    lines = result.stdout.splitlines()
    assert len(lines) == len(grid(engine_settings(deployment).scheduling))
    assert "1 generations of 8 keys" in lines and "8 generations of 16 to 48 keys" in lines
    assert not (deployment.output / "calibration.json").exists()


@pytest.mark.alone
@pytest.mark.slow
def test_fitted_times_predict_steps_that_were_not_in_the_fit(tiny_llama, deploy):
    """Random ones, timed in the same run, after others of their kind as in service."""
    limits = {"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 512}
    deployment = deploy(tiny_llama, limits=limits, kv_cache={"tokens_per_block": 16})
    scheduling, rnd, others = engine_settings(deployment).scheduling, random.Random(5), []
    while len(others) < 24:
        contexts = [
            Context(rnd.choice((0, 0, 16, 96)), rnd.randint(8, 120)) for _ in range(rnd.choice((0, 0, 1, 1, 2)))
        ]
        keys, count = rnd.randint(16, 300), rnd.choice((0, 1, 2, 4, 8, 15))
        plan = StepPlan(tuple(contexts), tuple(round(keys * rnd.uniform(0.7, 1.3)) for _ in range(count)))
        others += [plan] if (contexts or count) and plan.fits(scheduling) else []
    plans = grid(scheduling)
    found = time_steps(deployment, 15.0, quiet, [*plans, *sorted(others, key=lambda plan: plan.kind != "generation")])
    assert not found["skipped"]
    content = {"format": FORMAT, "kind": "steps", "model": model_of(deployment.shape, "steps"), **found}
    fitted = parse({**content, "rows": found["rows"][: len(plans)]}, Path("x")).step_times(deployment)
    held_out = parse({**content, "rows": found["rows"][len(plans) :]}, Path("x")).steps
    errors = [abs(fitted.step_seconds(step.work) / step.step_seconds - 1) for step in held_out]
    # Where other programs disturb, the mean of a step's times is far from their median.
    disturbed = statistics.median(abs(row["mean_step_seconds"] / row["step_seconds"] - 1) for row in found["rows"])
    assert len(errors) == 24 and statistics.median(errors) < 0.12 + disturbed, (disturbed, sorted(errors))


def start(deployment) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """The command, and its ranks once all of them run."""
    arguments = command(deployment, "--budget", "600")
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    until, ranks = time.monotonic() + 60, []
    while len(ranks) < deployment.mapping.world_size and time.monotonic() < until:
        time.sleep(0.05)
        children = psutil.Process(running.pid).children()
        ranks = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return running, ranks


def busy(ranks: list[psutil.Process]) -> None:
    """Returns when the ranks have begun to compute: importing torch takes them less processor time than this."""
    until = time.monotonic() + 300
    while ranks[0].cpu_times().user < 4 and time.monotonic() < until:
        time.sleep(0.05)


LARGE = {"max_sequences": 128, "max_num_tokens": 1024, "max_seq_len": 1024}


@pytest.mark.slow
@pytest.mark.parametrize("wait", [lambda ranks: None, busy], ids=["starting", "computing"])
def test_ctrl_c_leaves_no_file_and_no_process(tiny_llama, deploy, wait):
    deployment = deploy(tiny_llama, pp=2, limits=LARGE)
    running, ranks = start(deployment)
    wait(ranks)
    for process in (running, *ranks):  # as a terminal does
        with contextlib.suppress(psutil.NoSuchProcess):  # ended already by the first, which has had its own
            process.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert (running.returncode, output, errors) == (130, "", "\ninterrupted\n")
    assert len(ranks) == 2 and not any(rank.is_running() for rank in ranks)
    assert not list(deployment.output.glob("calibration*"))


@pytest.mark.slow
def test_a_rank_that_is_killed_is_one_line(tiny_llama, deploy):
    deployment = deploy(tiny_llama, pp=2, limits=LARGE)
    running, ranks = start(deployment)
    busy(ranks)
    ranks[1].kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert errors.splitlines()[-1].startswith("error: rank 0 of the rehearsal has ended.")
    assert not list(deployment.output.glob("calibration*"))


def test_replicas_are_not_measured(deploy, tiny_llama):
    deployment = with_settings(deploy(tiny_llama, 1, 1), parallel={"replicas": 2})
    for attempt in (planned, calibrate):
        with pytest.raises(ToolkitError, match=r"parallel.replicas: 2 replicas share the cores, .* Set it to 1\."):
            attempt(deployment)
