"""Groups of real ranks: many micro-batches in flight, and what the others do when one dies."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.engine.conftest import start_workers, started
from tests.engine.test_engine import PROMPT, soak
from tests.ports import free_port
from toolkit.engine.rehearsal.engine import RehearsalEngine
from toolkit.engine.settings import EngineSettings
from toolkit.errors import ToolkitError

LEADER = """
import sys, time
from toolkit.engine.rehearsal.engine import RehearsalEngine
from toolkit.engine.request import GenerationRequest
from toolkit.engine.settings import EngineSettings
from toolkit.errors import Busy
engine = RehearsalEngine(EngineSettings.model_validate_json(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
try:
    while sys.argv[3] == "busy":
        engine.submit([GenerationRequest(input_ids=[1, 2, 3], request_output_len=50)], lambda event: None)
        time.sleep(0.01)
except Busy:
    pass  # a rank has died: this program must not end by itself before the engine ends it
time.sleep(60)
"""


@pytest.fixture(scope="module")
def two_by_two(tiny_llama, deploy):
    return deploy(tiny_llama, tp=2, pp=2, limits={"max_sequences": 8, "max_num_tokens": 48, "max_seq_len": 128})


@pytest.mark.slow
def test_soak_with_as_many_micro_batches_in_flight_as_stages(tiny_llama, deploy):
    limits = {"max_sequences": 12, "max_num_tokens": 48, "max_seq_len": 128, "max_queue_size": 64}
    with started(deploy(tiny_llama, tp=1, pp=3, limits=limits), max_queue_size=64) as group:
        soak(group, 120)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 3])
@pytest.mark.parametrize("state", ["busy", "idle"])
def test_when_a_rank_is_killed_the_others_end_at_once(two_by_two, state, victim):
    settings, port = EngineSettings(gpt_model_path=two_by_two.engine_dir, max_queue_size=10**6), free_port()
    workers = start_workers(settings, port)
    arguments = [sys.executable, "-c", LEADER, settings.model_dump_json(), str(port), state]
    leader = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert leader.stdout and leader.stdout.readline() == "ready\n"
        time.sleep(0.3)  # a busy group is in the middle of its steps, an idle one waits
        os.kill(leader.pid if victim == 0 else workers[victim - 1].pid, signal.SIGKILL)
        start = time.monotonic()
        _, errors = leader.communicate(timeout=30)
        for worker in workers:
            worker.join(30)
        assert time.monotonic() - start < 30, "rank 0 would sleep for 60 s"
        codes = [leader.returncode, *(worker.exitcode for worker in workers)]
        assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(4)]
        assert ("rank 0 lost rank" in errors) == (victim != 0)  # itself or the next, whichever it noticed first
    finally:
        leader.kill()
        for worker in workers:
            worker.kill()


@pytest.mark.slow
def test_a_group_can_start_again_on_the_same_port(two_by_two):
    texts = []
    for _ in range(2):
        with started(two_by_two) as group:
            texts.append(group.generate(PROMPT, 5))
    assert texts[0] == texts[1]


def test_ranks_of_two_groups_never_meet(tiny_llama, deploy):
    port, (ours, theirs) = free_port(), (deploy(tiny_llama, pp=2), deploy(tiny_llama, tp=2))
    stray = start_workers(EngineSettings(gpt_model_path=theirs.engine_dir), port)[0]
    settings = EngineSettings(gpt_model_path=ours.engine_dir)
    workers = start_workers(settings, port)
    engine = RehearsalEngine(settings, port)
    stray.join(60)
    assert stray.exitcode == 1
    with pytest.raises(ToolkitError, match=f"rank 0 cannot meet the others on port {port}"):
        RehearsalEngine(EngineSettings(gpt_model_path=theirs.engine_dir), port)
    engine.close()
    workers[0].join(60)
    assert workers[0].exitcode == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "rank0.engine: cannot be read"),
        (lambda path: path.unlink(), "rank0.engine: cannot be read"),
    ],
)
def test_a_broken_rank_file_is_one_line(tiny_llama, deploy, spoil, message):
    deployment = deploy(tiny_llama)
    path = deployment.engine_dir / "rank0.engine"
    data = path.read_bytes()
    path.unlink()  # a hard link of the checkpoint's
    path.write_bytes(data)
    spoil(path)
    with pytest.raises(ToolkitError, match=message), started(deployment):
        pass


def test_a_rank_file_without_a_tensor(tiny_llama, deploy):
    deployment = deploy(tiny_llama, pp=2)
    last = deployment.engine_dir / "rank1.engine"
    (deployment.engine_dir / "rank0.engine").unlink()
    os.link(last, deployment.engine_dir / "rank0.engine")
    from toolkit.engine.rehearsal.model import Stage

    with pytest.raises(ToolkitError, match=r"rank0.engine: transformer.vocab_embedding.weight: missing"):
        Stage(EngineSettings(gpt_model_path=deployment.engine_dir), 0, lambda part: part)
