import pytest

from toolkit.config.deployment import Deployment, with_settings
from toolkit.serve import budget
from toolkit.serve.budget import startup_budget


@pytest.fixture
def on_gpus(deploy) -> Deployment:
    return deploy(tp=2, pp=2, startup_timeout_s=None).model_copy(update={"engine": "tensorrt"})


def engines(deployment: Deployment, *sizes: int) -> None:
    for rank, size in enumerate(sizes):
        with (deployment.engine_dir / f"rank{rank}.engine").open("wb") as stream:
            stream.truncate(size)  # a hole: no disk is written


def test_what_the_yaml_says_is_the_budget(deploy):
    assert str(startup_budget(deploy(startup_timeout_s=7.5))) == "7.5 s = serving.startup_timeout_s"


def test_bytes_over_rate(on_gpus, monkeypatch):
    engines(on_gpus, 30 * 10**9, 30 * 10**9)
    monkeypatch.setattr(budget, "measured_rate", lambda file: 1.2e9 if file.name == "rank0.engine" else None)
    startup = startup_budget(on_gpus)
    assert (startup.seconds, str(startup)) == (220, "220 s = 60.0 GB at 1.2 GB/s x 2 + 120 s")


def test_without_a_measurement_a_slow_disk_is_assumed(on_gpus):
    engines(on_gpus, 1000)
    assert str(startup_budget(on_gpus)) == "120 s = 0.0 GB at 0.2 GB/s (assumed) x 2 + 120 s"


def test_a_rehearsal_has_time_for_each_of_its_ranks(deploy):
    assert startup_budget(deploy(tp=2, pp=2, startup_timeout_s=None)).seconds == 120 + 4 * 60


def test_pytorch_loads_the_checkpoint(on_gpus, monkeypatch):
    monkeypatch.setattr(budget, "measured_rate", lambda file: 1e3)
    deployment = on_gpus.model_copy(update={"engine": "pytorch"})
    size = sum(path.stat().st_size for path in deployment.model.path.glob("*.safetensors"))
    assert startup_budget(deployment).seconds == round(size / 1e3 * 2 + 120)


def test_a_rate_is_measured_of_what_is_long_enough(tmp_path):
    file = tmp_path / "rank0.engine"
    file.write_bytes(b"x" * (budget.LEAST_SAMPLE_BYTES - 1))
    assert budget.measured_rate(file) is None and budget.measured_rate(tmp_path / "none") is None
    file.write_bytes(b"x" * budget.LEAST_SAMPLE_BYTES)
    assert budget.measured_rate(file) > 0


def test_longer_files_have_longer_budgets(on_gpus, monkeypatch):
    monkeypatch.setattr(budget, "measured_rate", lambda file: None)
    seconds = []
    for gigabytes in (1, 10, 100):
        engines(on_gpus, gigabytes * 10**9)
        seconds.append(startup_budget(with_settings(on_gpus)).seconds)
    assert seconds == [130, 220, 1120]
