"""What a person at a terminal sees: each mistake is one line on stderr, exit code 1, and nothing half-written."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tests.ports import free_ports

from .group import MAX_SEQUENCES, Group, succeed, toolkit, write_yaml
from .marks import eight_ranks, every_size, one_rank

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def model(tmp_path: Path, tiny_llama: Path) -> Path:
    """A copy of the model, to be spoilt."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    return write_yaml(tmp_path, model, tp=2, pp=1)


def error_of(name: str, *arguments: str | Path) -> str:
    """The error of a command that must fail, after the lines that say what it was doing."""
    done = toolkit(name, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    return lines[-1]


def truncate(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: len(content) // 2])


def lose_a_shard(model: Path) -> None:
    names = load_file(model / WEIGHTS)
    shards = {name: "model-00001-of-00002.safetensors" for name in names} | {NORM: "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")


def misshape(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    save_file(tensors | {NORM: tensors[NORM][:100]}, model / WEIGHTS)


def poison(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors[NORM][3] = float("nan")
    save_file(tensors, model / WEIGHTS)


SPOILT = {
    "truncated": (truncate, "is not a whole safetensors file"),
    "shard missing": (lose_a_shard, "model-00002-of-00002.safetensors, which is not there"),
    "wrong shape": (misshape, f"{NORM}: has shape [100], config.json asks for [128]"),
    "NaN": (poison, f"{NORM}: value at [3] is nan"),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), "holds no *.safetensors"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_a_model_that_cannot_be_converted(config, model, spoil, message):
    spoil(model)
    assert message in error_of("convert", config)
    assert list(config.parent.glob("output*/*")) == []


def test_no_tokenizer(config, model):
    (model / "tokenizer.json").unlink()
    succeed("build", config)
    assert "tokenizer.json" in error_of("repo", config)
    assert sorted(path.name for path in (config.parent / "output").iterdir()) == ["checkpoint", "engine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel": {"tp": 3, "pp": 1}}, "parallel.tp: 3 does not divide"),
        ({"limits": {"max_seq_len": "long"}}, "limits.max_seq_len"),
        ({"paralel": {"tp": 2}}, "paralel: unknown key"),
        ({"engine": "tensorflow"}, "engine"),
        ({"model": {"path": "elsewhere"}}, "no config.json"),
    ],
    ids=["tp", "type", "key", "engine", "path"],
)
def test_a_yaml_that_is_wrong(config, change, message):
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    error = error_of("plan", config)
    assert message in error and str(config) in error


def test_no_such_yaml(tmp_path):
    assert "no such file" in error_of("plan", tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["repo", "serve", "serve --detach"])
def test_commands_out_of_order_say_which_comes_first(config, name):
    assert f"toolkit build {config}" in error_of(name, config)


def test_ask_without_a_server(config):
    address = Group(config).http
    assert f"http://{address}: cannot be reached" in error_of("ask", config, "Anybody?")


def test_loadtest_without_a_server(config):
    done = toolkit("loadtest", config)
    assert done.returncode == 3 and done.stdout.startswith("COULD NOT RUN") and not done.stderr
    assert f"toolkit serve {config}" in " ".join(done.stdout.split())


def test_nothing_to_stop(config):
    assert "nothing was running" in succeed("stop", config)


@one_rank
def test_an_occupied_port(group, tmp_path, tiny_llama):
    file = another_deployment_of(group, tmp_path)
    content = yaml.safe_load(file.read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        content["serving"]["grpc_port"] = taken.getsockname()[1]
        file.write_text(yaml.safe_dump(content))
        error = error_of("serve --detach", file)
    assert "serving.grpc_port" in error and str(content["serving"]["grpc_port"]) in error


def another_deployment_of(group: Group, folder: Path) -> Path:
    """The built and generated directories of a group, with other ports and not served."""
    content = group.content
    output = Path(content["output"])
    shutil.copytree(output, folder / "output", ignore=shutil.ignore_patterns("run"))
    names = ("http_port", "grpc_port", "metrics_port")
    content["serving"] |= dict(zip(names, free_ports(), strict=True))
    file = folder / group.file.name
    file.write_text(yaml.safe_dump(content | {"output": str(folder / "output")}))
    return file


@every_size
def test_ask_streams_an_answer(group, truth):
    expected = truth.text(truth.greedy(truth.ids("Tyger Tyger"), 20))
    for protocol in ("--http", "--grpc"):
        done = toolkit("ask", group.file, "Tyger Tyger", "--raw", "--max-tokens", "20", protocol)
        assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


@one_rank
def test_ask_with_the_chat_template(group, truth):
    prompt = truth.ids("<|user|>Tyger Tyger, burning bright,<|eot|><|assistant|>")
    answer = json.loads(succeed("ask", group.file, "Tyger Tyger, burning bright,", "--max-tokens", "200", "--json"))
    expected = truth.greedy(prompt, 200)
    assert (answer["text"], answer["tokens"]) == (truth.text(expected), len(expected))


@every_size
def test_status_of_a_running_group(group):
    found = json.loads(succeed("status", group.file, "--json"))
    assert (found["phase"], found["ready"], found["running"]) == ("ready", True, 0)
    assert found["ranks"] == found["world_size"]


@one_rank
def test_a_second_serve_is_refused(group):
    assert "is already being served" in error_of("serve", group.file)
    assert group.requests("max") == MAX_SEQUENCES


@eight_ranks
def test_loadtest(group):
    done = toolkit("loadtest", group.file, "--users", "4", "--requests", "12", "--no-self-check", "--json")
    assert done.returncode in (0, 1), done.stderr  # the verdict depends on how busy the machine is
    report = json.loads(done.stdout)
    assert Path(group.content["output"], "report").is_dir() and report
