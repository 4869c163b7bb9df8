"""A deployment over all GPUs that loses one goes on as a smaller one, behind the same door, and comes back."""

from __future__ import annotations

import pytest
import yaml

from tests import commands
from tests.gateway.test_envoy import ask
from tests.up.conftest import Up, write_and_build
from tests.waiting import eventually
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.door import folder
from toolkit.up.fallback import MARKER, first_that_fits, gpus_left, load_fallbacks, lost_gpus

PROMPT = {"model": "llama", "prompt": "Shall I compare thee to", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_llama):
    """The YAML of two ranks, whose fallback has one."""
    home = tmp_path_factory.mktemp("fallback")
    write_and_build(home, tiny_llama, "small")
    recovery = {"canary_s": 3, "backoff_s": 0.2, "fallback": ["small.yaml"]}
    return write_and_build(home, tiny_llama, "large", parallel={"tp": 2}, recovery=recovery)


def changed(file, **changes):
    """The deployment with other settings, in a file of its own."""
    other = file.with_name("other.yaml")
    other.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    return load_deployment(other)


def test_the_file_in_the_run_folder_names_lost_gpus(pair):
    deployment = load_deployment(pair)
    folder(deployment).mkdir(exist_ok=True)
    marker = folder(deployment) / MARKER
    assert lost_gpus(deployment) == ()
    for text, lost in (("1", (1,)), ("1,0\n", (0, 1)), ("7 x -1", ()), ("", ())):
        marker.write_text(text)
        assert lost_gpus(deployment) == lost
    marker.unlink()


def test_the_first_that_fits_the_gpus_that_are_left(pair):
    deployment = changed(pair, hardware={"gpu": "none", "gpus": 2})
    fallbacks = load_fallbacks(deployment)
    assert gpus_left(deployment, (1,)) == (0,)
    assert first_that_fits(deployment, fallbacks, (1,)) is fallbacks[0]
    assert first_that_fits(deployment, fallbacks, (0, 1)) is None


def test_a_given_engine_is_that_of_the_fallback_too(pair):
    small, large = (yaml.safe_load((pair.parent / f"{name}.yaml").read_text()) for name in ("small", "large"))
    own = {"engine": "tensorrt"}
    (pair.parent / "small-gpu.yaml").write_text(yaml.safe_dump({**small, "name": "small", **own}))
    file = pair.with_name("large-gpu.yaml")
    recovery = {**large["recovery"], "fallback": ["small-gpu.yaml"]}
    file.write_text(yaml.safe_dump({**large, "name": "large", **own, "recovery": recovery}))
    (fallback,) = load_fallbacks(load_deployment(file, "rehearsal"))
    assert fallback.engine == "rehearsal"


def test_a_fallback_that_cannot_help_is_said_before_anything_starts(pair, tmp_path):
    home = pair.parent
    (home / "unbuilt.yaml").write_text((home / "small.yaml").read_text().replace("output: ", "output: /tmp/not-here"))
    text = yaml.safe_load((home / "small.yaml").read_text())
    (home / "two.yaml").write_text(yaml.safe_dump({**text, "parallel": {"replicas": 2}}))
    (home / "same.yaml").write_text(yaml.safe_dump({**text, "output": str(home / "large")}))
    for name, message in (
        ("absent.yaml", "absent.yaml: no such file"),
        ("large.yaml", "large.yaml needs 2 GPUs, this deployment 2. Use one with fewer GPUs"),
        ("two.yaml", "two.yaml has 2 replicas. Use one with parallel.replicas: 1"),
        ("same.yaml", "same.yaml has the same output as this deployment"),
        ("unbuilt.yaml", "Run: toolkit build"),
    ):
        with pytest.raises(ToolkitError) as caught:
            load_fallbacks(changed(pair, recovery={"fallback": [str(home / name)]}))
        assert message in str(caught.value)


@pytest.mark.slow
def test_a_lost_gpu(pair):
    pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
    pytest.importorskip("envoy", reason="needs the extra gateway")
    up = Up(pair)
    up.start()
    try:
        before = ask(up.url, "/v1/completions", PROMPT)
        assert before[0] == 200
        marker = folder(up.deployment) / MARKER
        marker.write_text("1")  # no process ends by itself: the watch over the GPUs sees it
        eventually(lambda: up.phase == "down")
        up.wait_ready()
        after = ask(up.url, "/v1/completions", PROMPT)
        assert after[2]["choices"][0]["text"] == before[2]["choices"][0]["text"]
        fallback_event = next(event for event in up.events() if "GPU 1 is lost" in event.get("cause", ""))
        assert fallback_event["action"] == "small starts on 1 of 2 GPUs"
        marker.unlink()
        done = commands.toolkit("restart", up.file)
        assert done.returncode == 0, done.stderr
        up.wait_ready()
        assert len(up.ranks(0)) == 2
        assert ask(up.url, "/v1/completions", PROMPT)[0] == 200
    finally:
        up.end()
