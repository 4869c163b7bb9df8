import io

import pytest

from toolkit.serve.logs import ORCHESTRATOR, Logs

# Written by Open MPI 5.0.11 and 4.1.8 for two ranks; 4.1 tags every piece, also in the middle of a line.
OPEN_MPI_5 = """\
[1,0]<stderr>: I1122 13:21:14.844761 9001 cuda_memory_manager.cc:117] "CUDA memory pool disabled"
[1,1]<stderr>: error: creating server: Invalid argument - no model
[1,0]<stdout>: loaded 4 layers
[1,0]<stderr>: E1122 13:21:14.845226 9001 server.cc:241] "CudaDriverHelper has not been initialized."
--------------------------------------------------------------------------
prterun noticed that process rank 1 exited on signal 9 (Killed).
"""
OPEN_MPI_4 = """\
[1,0]<stderr>:I1122 13:21:14.844761 9001 cuda_memory_manager.cc:117] "CUDA memory pool disabled"
[1,1]<stderr>:error: [1,1]<stderr>:creating server[1,0]<stdout>:loaded 4 layers
[1,1]<stderr>:: [1,1]<stderr>:Invalid argument[1,1]<stderr>: - [1,1]<stderr>:no model
[1,0]<stderr>:E1122 13:21:14.845226 9001 server.cc:241] "CudaDriverHelper has not been initialized."
--------------------------------------------------------------------------
prterun noticed that process rank 1 exited on signal 9 (Killed).
"""


def test_workers_of_an_orchestrator_are_the_ranks(tmp_path):
    logs = Logs(tmp_path, 2, lambda line: None, verbose=False, orchestrated=True)
    # Open MPI 4.1: the workers are its second job.
    logs.follow(io.StringIO("[1,0]<stderr>:starts workers\n[2,0]<stderr>:one\n[2,1]<stderr>:two\nprterun noticed\n"))
    logs.finish()
    names = ("orchestrator", "rank0", "rank1", "mpirun")
    assert [(tmp_path / f"{name}.log").read_text() for name in names] == [
        "starts workers\n",
        "one\n",
        "two\n",
        "prterun noticed\n",
    ]
    assert logs.last(ORCHESTRATOR) == ["starts workers"] and logs.last(1) == ["two"]


@pytest.mark.parametrize("output", [OPEN_MPI_5, OPEN_MPI_4], ids=["5.0", "4.1"])
def test_each_rank_gets_its_lines(tmp_path, output):
    shown = []
    logs = Logs(tmp_path, 2, shown.append, verbose=False)
    logs.follow(io.StringIO(output))
    logs.finish()
    assert (tmp_path / "rank1.log").read_text() == "error: creating server: Invalid argument - no model\n"
    assert len((tmp_path / "rank0.log").read_text().splitlines()) == 3
    assert "process rank 1 exited on signal 9" in (tmp_path / "mpirun.log").read_text()
    assert sorted(shown) == [
        "rank 0 | loaded 4 layers",
        "rank 1 | error: creating server: Invalid argument - no model",
    ]
    assert logs.last(0) == ["loaded 4 layers"]


def test_verbose_shows_everything(tmp_path):
    shown = []
    logs = Logs(tmp_path, 2, shown.append, verbose=True)
    logs.follow(io.StringIO(OPEN_MPI_5))
    logs.finish()
    assert len(shown) == 6
    assert shown[0].startswith("rank 0 | I1122 ")


def test_the_run_before_is_kept(tmp_path):
    for text in ("first", "second"):
        logs = Logs(tmp_path, 1, print, verbose=False)
        logs.follow(io.StringIO(f"[1,0]<stdout>: {text}\n"))
        logs.finish()
    assert (tmp_path / "rank0.log").read_text() == "second\n"
    assert (tmp_path / "rank0.previous.log").read_text() == "first\n"


def test_routine_lines_are_told_where_there_are_no_others(tmp_path):
    logs = Logs(tmp_path, 1, print, verbose=False)
    logs.follow(io.StringIO('[1,0]<stderr>: I1122 13:21:14.844761 9001 a.cc:1] "loading"\n'))
    logs.finish()
    assert logs.last(0) == ['I1122 13:21:14.844761 9001 a.cc:1] "loading"']


def test_a_signal_to_end_is_told_apart_from_one_that_it_dies_by(tmp_path):
    logs = Logs(tmp_path, 3, print, verbose=False)
    lines = [f"[1,{rank}]<stderr>: Signal ({number}) received.\n" for rank, number in ((0, 11), (1, 15), (2, 6))]
    logs.follow(io.StringIO("".join(lines)))
    logs.finish()
    assert logs.end_signals == {1: 15}
