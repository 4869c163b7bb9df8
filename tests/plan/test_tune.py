"""toolkit tune: settings that serve the kept traffic better, each held against a plan of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.commands import toolkit
from toolkit.config.load import load_deployment
from toolkit.plan import tune

SHAPE = Path(__file__).parents[1] / "fixtures" / "shapes" / "llama-3-8b"
PROMPT, SHARED, BLOCK = 2048, 1920, 64
CONTENT = {
    "engine": "tensorrt",
    "model": {"path": str(SHAPE)},
    "limits": {"max_sequences": 32, "max_num_tokens": 2048, "max_seq_len": 4096},
    "kv_cache": {"reuse": False, "tokens_per_block": BLOCK},
    "hardware": {"gpus": 1},
    "slo": {"ttft_ms": {"p99": 1000}, "tpot_ms": {"p99": 60}},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML without reuse of prefixes, and its traffic: prompts that begin with the same 1,920 of 2,048 tokens."""
    folder = tmp_path_factory.mktemp("tune")
    shared = list(range(SHARED // BLOCK))
    with (folder / "traffic.jsonl").open("w") as file:
        for number in range(150):
            own = [1000 + 10 * number + block for block in range((PROMPT - SHARED) // BLOCK)]
            line = {"timestamp": 200 * number, "input_length": PROMPT, "output_length": 40, "hash_ids": shared + own}
            file.write(json.dumps({**line, "block_tokens": BLOCK}) + "\n")
    text = yaml.safe_dump({**CONTENT, "monitoring": {"traffic": "traffic.jsonl"}})
    (folder / "served.yaml").write_text(f"# Ours.\n{text}")
    return folder / "served.yaml"


@pytest.fixture(scope="module")
def tuned(config: Path) -> dict[str, object]:
    done = toolkit("tune", config, "--json", "--write", config.with_name("better.yaml"))
    assert done.returncode == 0, done.stderr
    assert f"next: toolkit restart {config} --rolling --with {config.with_name('better.yaml')}" in done.stderr
    return json.loads(done.stdout)


def planned(config: Path, *settings: str) -> float:
    """The highest rate of `toolkit plan` with these settings, under the same traffic."""
    options = ["--what-if", *settings] if settings else []
    done = toolkit("plan", config, "--workload", f"trace:{config.with_name('traffic.jsonl')}", "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["prediction"]["capacity"]["highest"]


def test_reuse_is_found_and_gives_what_a_plan_of_it_says(config, tuned):
    now, change = tuned["now"], tuned["changes"][0]
    assert change["settings"]["kv_cache.reuse"] is True and change["needs_engine"] is False
    assert now["requests_per_s"] == planned(config)
    (alone,) = [one for one in tuned["changes"] if one["settings"] == {"kv_cache.reuse": True}]
    assert alone["requests_per_s"] == planned(config, "kv_cache.reuse=true")
    assert alone["gain"] == pytest.approx(alone["requests_per_s"] / now["requests_per_s"] - 1)
    assert alone["gain"] > 2, "without reuse a step computes 2,048 tokens of each prompt, with it 128"


@pytest.mark.thorough
def test_settings_that_help_together_are_proposed_together(tmp_path, monkeypatch):
    """A small KV cache and long answers: reuse shares its blocks, and max_utilization does not hold back the rest."""
    monkeypatch.setattr(
        tune, "_rebuilt", lambda *_: iter(())
    )  # other engines take long to simulate, and matter not here
    shared, file = [1, 2, 3, 4, 5, 6, 7, 8], tmp_path / "tight.yaml"
    rows = [
        {"timestamp": 300 * number, "input_length": 1024, "output_length": 400, "block_tokens": BLOCK}
        | {"hash_ids": [*shared, *(1000 + 10 * number + block for block in range(8))]}
        for number in range(60)
    ]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {**CONTENT, "limits": {"max_sequences": 64, "max_num_tokens": 2048, "max_seq_len": 4096}}
    content |= {"kv_cache": {"reuse": False, "tokens_per_block": BLOCK, "max_tokens": 8192}}
    content |= {"slo": {"ttft_ms": {"p99": 2000}, "tpot_ms": {"p99": 60}}}
    file.write_text(yaml.safe_dump({**content, "monitoring": {"traffic": "traffic.jsonl"}}))
    seen = tune.with_traffic(load_deployment(file), None)
    found = tune.advise(seen, tune.predict_with(seen, None), lambda *_: None)
    rates = {frozenset(change.settings): change.prediction.capacity.highest for change in found.changes}
    reuse, policy = frozenset({"kv_cache.reuse"}), frozenset({"scheduler.policy"})
    assert set(rates) == {reuse, policy, reuse | policy}
    assert rates[reuse | policy] > max(rates[reuse], rates[policy])
    assert found.best_without_engine and set(found.best_without_engine.settings) == reuse | policy


def test_other_limits_need_other_engines(tuned):
    for change in tuned["changes"]:
        limits = {"limits.max_sequences", "limits.max_num_tokens", "model.quantization"} & set(change["settings"])
        assert change["needs_engine"] == bool(limits), change
    assert {change["needs_engine"] for change in tuned["changes"]} == {True, False}


def test_the_yaml_is_written_with_the_best_of_the_same_engines(config, tuned):
    text = config.with_name("better.yaml").read_text()
    assert text.startswith("# Ours.\n") and yaml.safe_load(text)["kv_cache"]["reuse"] is True
    assert yaml.safe_load(text)["limits"] == CONTENT["limits"]


@pytest.mark.thorough
def test_nothing_is_better_of_what_is_written(config, tuned):
    """It does not go back and forth between two settings."""
    done = toolkit("tune", config.with_name("better.yaml"), "--write", config.with_name("again.yaml"))
    assert done.returncode == 1 and not config.with_name("again.yaml").exists()
    assert done.stderr.endswith("--write: no other settings of the same engines serve this traffic better\n")
    assert "as it is" in done.stdout


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ({}, (), "monitoring.traffic: missing, so no traffic is kept. Name a file there"),
        ({"monitoring": {"traffic": "none.jsonl"}}, (), "none.jsonl is not there yet. It is written while"),
        ({}, ("--traffic", "none.jsonl"), "none.jsonl: cannot be read: No such file or directory"),
        ({}, ("--engine", "rehearsal"), "how long steps take in a rehearsal is not known. Run: toolkit calibrate"),
    ],
)
def test_a_bad_input_is_one_line(tmp_path, content, options, said):
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({**CONTENT, **content}))
    done = toolkit("tune", file, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and said in done.stderr


def test_a_file_that_is_there_is_kept(config):
    done = toolkit("tune", config, "--write", config)
    assert done.returncode == 1 and "is already there. Give another FILE, or --force" in done.stderr
