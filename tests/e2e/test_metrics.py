"""The metrics port: NVIDIA's families, labels and spelling, while requests run and after."""

import re

import pytest

from .group import BLOCKS, MAX_SEQUENCES, TOKENS_PER_BLOCK, samples, wait_for
from .marks import every_size, one_rank
from .tensors import Stream

pytestmark = pytest.mark.slow

FAMILIES = {
    "nv_trt_llm_request_metrics": ("request_type", "active max scheduled context waiting"),
    "nv_trt_llm_runtime_memory_metrics": ("memory_type", "cpu gpu pinned"),
    "nv_trt_llm_kv_cache_block_metrics": ("kv_cache_block_type", "max free used tokens_per reused fraction"),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        "total_context_tokens generation_requests micro_batch_id paused_requests",
    ),
    "nv_trt_llm_general_metrics": ("general_type", "timestamp iteration_counter"),
}
HISTOGRAMS = {
    "nv_llm_input_token_len": "total_input_tokens",
    "nv_llm_output_token_len": "total_output_tokens",
}
BASE = ("nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count", "nv_inference_exec_count")


@every_size
def test_families_labels_and_spelling(group):
    group.ask(text_input="Tyger Tyger", max_tokens=5)
    text = group.metrics_text()
    for family, (label, values) in FAMILIES.items():
        assert f"# TYPE {family} gauge" in text
        pattern = rf"^{family}\{{(.*)\}} (\S+)$"
        found = re.findall(pattern, text, re.MULTILINE)
        names = [re.findall(r'(\w+)="', labels) for labels, _ in found]
        assert all(each == sorted(["model", "version", label]) for each in names)
        assert {re.search(rf'{label}="(\w+)"', labels)[1] for labels, _ in found} == set(values.split())
        assert all(re.fullmatch(r"[0-9]+", number) for labels, number in found if "fraction" not in labels)
    for family, value in HISTOGRAMS.items():
        assert f"# TYPE {family} histogram" in text
        buckets = re.findall(rf'^{family}_bucket\{{.*"{value}".*le="(.+?)"\}} \d+$', text, re.MULTILINE)
        assert buckets == ["10", "50", "100", "500", "1000", "+Inf"]
    assert all(f"# TYPE {family} counter" in text for family in BASE)


@every_size
def test_values_at_rest(group):
    assert group.requests("max") == MAX_SEQUENCES
    assert group.blocks("max") == group.blocks("free") == BLOCKS
    assert group.blocks("tokens_per") == TOKENS_PER_BLOCK
    for kind in ("active", "scheduled", "context", "waiting"):
        assert group.requests(kind) == 0


def full(group) -> dict[tuple[str, str], float] | None:
    """All metrics of a moment in which 20 sequences are active and 16 are in a step; None in any other moment.

    Triton gets them one by one: a look may come between two of them.
    """
    found = {(name, value): float(number) for name, value, number in samples(group.metrics_text())}
    requests = [found["nv_trt_llm_request_metrics", kind] for kind in ("active", "scheduled")]
    in_step = found["nv_trt_llm_inflight_batcher_metrics", "generation_requests"]
    in_step += found["nv_trt_llm_request_metrics", "context"]
    return found if requests == [20, 16] and in_step == 16 else None


@one_rank
def test_values_while_requests_run(group):
    """20 sequences on 16 places, each of 2 + 900 tokens: 57 blocks, of which all 16 find enough."""
    before = group.metric("nv_trt_llm_general_metrics", "iteration_counter")
    with Stream(group.grpc) as stream:
        for number in range(2):  # few requests with many sequences: all are there before the first one ends
            asked = {"input_ids": [0, 65 + number], "input_lengths": 2, "request_output_len": 900, "streaming": True}
            stream.send("tensorrt_llm", id=f"{number}", num_return_sequences=10, **asked)
        found = wait_for(lambda: full(group), "16 of 20 run", within_s=60)
        stream.cancel()
    requests = {
        kind: found["nv_trt_llm_request_metrics", kind] for kind in ("active", "scheduled", "waiting", "context")
    }
    assert requests["active"] == 20 and requests["scheduled"] == 16 and requests["waiting"] == 4
    batcher = "nv_trt_llm_inflight_batcher_metrics"
    assert found[batcher, "generation_requests"] + requests["context"] == 16
    assert found[batcher, "micro_batch_id"] == 0 == found[batcher, "paused_requests"]
    blocks = {kind: found["nv_trt_llm_kv_cache_block_metrics", kind] for kind in ("used", "free", "max", "fraction")}
    assert blocks["used"] + blocks["free"] == blocks["max"] == BLOCKS
    assert 16 <= blocks["used"] <= 16 * 57
    assert blocks["fraction"] == pytest.approx(blocks["used"] / BLOCKS, abs=0.01)
    assert found["nv_trt_llm_runtime_memory_metrics", "cpu"] > 50 << 20
    wait_for(
        lambda: group.metric("nv_trt_llm_general_metrics", "iteration_counter") > before,
        "a step is counted, which happens at its end",
    )
    wait_for(group.is_idle, "back to zero")
    assert group.blocks("free") == BLOCKS


@one_rank
def test_token_histograms_count_tokens(group, truth):
    def sums() -> tuple[float, float, float]:
        inputs = group.metric("nv_llm_input_token_len_sum", "total_input_tokens")
        return inputs, group.output_tokens(), group.metric("nv_llm_output_token_len_count", "total_output_tokens")

    def one_request() -> bool:
        """Ask, and wait. False if a request of an earlier test, whose client left, was counted meanwhile."""
        before = sums()
        group.ask(text_input="Tyger Tyger", max_tokens=7)
        wait_for(lambda: sums()[2] > before[2], "the request is counted")
        return sums() == (before[0] + len(truth.ids("Tyger Tyger")), before[1] + 7, before[2] + 1)

    wait_for(one_request, "counts of one request alone")


@one_rank
def test_reused_blocks(group, truth):
    """The second time, the full blocks of a prompt are found."""
    prompt = truth.ids("My mistress' eyes are nothing like the sun;\n" * 5)
    before = group.blocks("reused")
    for _ in range(2):
        group.ask("tensorrt_llm", input_ids=prompt, input_lengths=len(prompt), request_output_len=1)
    full = (len(prompt) - 1) // TOKENS_PER_BLOCK
    wait_for(lambda: group.blocks("reused") - before == full, f"{full} blocks reused")


LATENCIES = "toolkit_time_to_first_token_seconds toolkit_time_per_output_token_seconds toolkit_request_duration_seconds"


def counted(group, family: str, model: str, **labels: str) -> float:
    """The value of a counter, or the count of a histogram, of our own families; 0 if it is not there yet."""
    wanted = {"model": model, "protocol": "triton", "replica": "0", **labels}
    for line in group.metrics_text().splitlines():
        name, _, rest = line.partition("{")
        found, _, value = rest.rpartition("} ")
        if name == family and dict(re.findall(r'(\w+)="([^"]*)"', found)) == wanted:
            return float(value)
    return 0


@one_rank
def test_latencies_of_a_stream(group):
    """Each request counts once in each model that it passes; each token but the first has a gap."""
    models = "tensorrt_llm_bls", "tensorrt_llm"
    gaps = "toolkit_inter_token_latency_seconds_count"
    before = {model: counted(group, gaps, model) for model in models}
    firsts = {model: counted(group, "toolkit_time_to_first_token_seconds_count", model) for model in models}
    group.events("tensorrt_llm_bls", text_input="Tyger Tyger", max_tokens=7)
    for model in models:
        wait_for(lambda model=model: counted(group, gaps, model) == before[model] + 6, f"six gaps in {model}")
        assert counted(group, "toolkit_time_to_first_token_seconds_count", model) == firsts[model] + 1
    text = group.metrics_text()
    for family in LATENCIES.split():
        assert text.count(f"# TYPE {family} histogram") == 1
        sums = {(name, le) for name, le in re.findall(rf'^({family}_bucket)\{{.*le="([^"]+)"', text, re.MULTILINE)}
        assert len(sums) > 40


@one_rank
def test_errors_have_classes(group):
    def errors(kind: str) -> float:
        return counted(group, "toolkit_request_errors_total", "tensorrt_llm_bls", error=kind)

    before = errors("invalid_arg")
    assert group.post("tensorrt_llm_bls", {"text_input": "a", "max_tokens": 0})[0] == 400
    wait_for(lambda: errors("invalid_arg") == before + 1, "the refusal is counted")
    before = errors("cancelled")
    with Stream(group.grpc) as stream:
        stream.send("tensorrt_llm_bls", id="leaves", stream=True, text_input="A crab", max_tokens=900, end_id=-1)
        stream.next()
        stream.cancel()
    wait_for(lambda: errors("cancelled") == before + 1, "the client that left counts")
