"""The plan of a group over several nodes, against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from toolkit.config.load import load_deployment
from toolkit.plan.layouts import any_fits, nodes_that_hold, variants
from toolkit.plan.predict import predict
from toolkit.plan.show.report import step_text
from toolkit.sizing.memory import GIB, plan_memory
from toolkit.steptimes.step import decode, prefill

CONFIGS = Path(__file__).parents[2] / "build_configs"
TWO_NODES = CONFIGS / "llama3.1-405b-h100-2x8-fp16.yaml"
HIDDEN, LATENCY = 16384, 20e-6


def times(**hardware):
    changes = {f"hardware.{name}": value for name, value in hardware.items()}
    return predict(load_deployment(TWO_NODES, changes=changes)).times


def test_hidden_states_cross_by_the_link_between_nodes():
    """Each of 8 ranks sends 1,024 tokens x 16,384 x 2 bytes = 33.6 MB; 12.5 GB/s carry all 8 in 21.5 ms."""
    assert times().hops(prefill(1024)) == pytest.approx([LATENCY + 8 * 1024 * HIDDEN * 2 / 12.5e9])
    assert times().hops(prefill(1024)) == pytest.approx([21.495e-3], rel=1e-3)
    assert times(node_links=8).hops(prefill(1024)) == pytest.approx([LATENCY + 1024 * HIDDEN * 2 / 12.5e9])
    assert times(node_links=16).hops(prefill(1024)) == times(node_links=8).hops(prefill(1024))
    assert times(node_link_gbps=400).hops(prefill(1024)) == pytest.approx([LATENCY + 8 * 1024 * HIDDEN * 2 / 50e9])
    assert times().hops(decode(16, 1000)) == pytest.approx([LATENCY + 8 * 16 * HIDDEN * 2 / 12.5e9])
    assert times(node_latency_us=70).finish_seconds(decode(16, 1000)) == pytest.approx(70e-6)


def test_only_the_cut_between_the_nodes_is_slow():
    four = predict(load_deployment(TWO_NODES, changes={"parallel": {"tp": 4, "pp": 4, "nodes": 2}})).times
    inside, cut, after = four.hops(prefill(1024))
    assert inside == after == pytest.approx(10e-6 + 1024 * HIDDEN * 2 / (0.8 * 450e9))
    assert cut == pytest.approx(LATENCY + 4 * 1024 * HIDDEN * 2 / 12.5e9)


def test_memory_of_a_gpu_is_that_of_its_stage():
    """A layer has 16384 x (2 x 16384 + 2 x 1024) + 3 x 16384 x 53248 parameters; each GPU has an eighth of 63."""
    plan = plan_memory(load_deployment(TWO_NODES))
    layer = 16384 * (2 * 16384 + 2 * 8 * 128) + 3 * 16384 * 53248
    norms = 2 * 16384 * 2
    assert [stage.layer_bytes for stage in plan.stages] == [63 * (layer // 8 * 2 + norms)] * 2
    assert plan.headroom_bytes > 0
    assert [len(stage.layers) for stage in plan.stages] == [63, 63]


def test_the_plan_shows_the_nodes_and_the_link():
    deployment = load_deployment(TWO_NODES)
    prediction = predict(deployment)
    assert "node link   21.49 ms of this prefill, 0.36 ms of this decode, at each crossing" in step_text(prediction)


def test_where_no_node_holds_the_model_the_fewest_that_do_are_proposed(tmp_path):
    """811.7 GB of weights; 8 GPUs have 8 x 79.6 x 0.85 GiB = 581 GB under the limit."""
    content = yaml.safe_load(TWO_NODES.read_text())
    del content["cluster"]
    content["parallel"] = {"tp": 8, "pp": 1}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(content))
    one = load_deployment(tmp_path / "one.yaml")
    assert not any_fits(one)
    two = nodes_that_hold(one)
    assert two is not None and (two.parallel.nodes, two.parallel.tp, two.parallel.pp) == (2, 8, 2)
    assert plan_memory(two).fullest.weight_bytes < 52 * GIB
    flagship = load_deployment(CONFIGS / "llama3-70b-h100-pp4tp2-fp16.yaml")
    assert nodes_that_hold(flagship) is None


def test_layouts_of_two_nodes_keep_tensor_parallel_groups_inside():
    layouts = [variant.parallel for variant in variants(load_deployment(TWO_NODES))]
    assert layouts and all(layout.pp % 2 == 0 and layout.tp <= 8 and layout.nodes == 2 for layout in layouts)
    assert all(layout.tp * layout.pp * layout.replicas == 16 for layout in layouts)
