"""The page of a plan: what it says, that it needs nothing else, and that every picture is on it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.config.workload import Lengths
from toolkit.errors import ToolkitError
from toolkit.plan.layouts import Comparison, Remedy, evaluate
from toolkit.plan.predict import Prediction, predict
from toolkit.plan.show import page as pages
from toolkit.plan.show import wording
from toolkit.plan.show.charts import Line, memory_chart, rate_charts, timeline_chart
from toolkit.plan.show.page import page, write_page
from toolkit.plan.sweep import SHARES, Point, points_of
from toolkit.slo.target import Target

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
WORKLOAD = {"requests": 100, "rate": 3.0, "prompt_tokens": 1024, "output_tokens": 12, "arrivals": "poisson"}
CHARTS = ["Memory of each GPU", "Time to first token (TTFT) against rate", "Time per output token (TPOT) against rate"]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The text of a page, by element and in all, and every attribute; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.handle_data(" ")
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.handle_data(" ")

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def of(self, tag: str) -> list[str]:
        return [" ".join(text.split()) for text in self.texts.get(tag, [])]


def small(**sections) -> Deployment:
    return with_settings(load_deployment(FLAGSHIP), **{"workload": WORKLOAD, **sections})


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return predict(small())


@pytest.fixture(scope="module")
def alone(prediction) -> Page:
    return Page(page(prediction, None))


@pytest.fixture(scope="module")
def comparison(prediction) -> Comparison:
    """The user's own, one that fits, and one that does not."""
    parallels = [
        {"tp": 8, "pp": 1, "replicas": 1},
        {"tp": 2, "pp": 4, "replicas": 1},
        {"tp": 1, "pp": 1, "replicas": 8},
    ]
    layouts = tuple(evaluate(small(parallel=parallel)) for parallel in parallels)
    assert layouts[2].prediction is None
    return Comparison(layouts, layouts[1], "slo")


@pytest.fixture(scope="module")
def compared(prediction, comparison) -> Page:
    return Page(page(prediction, comparison))


def test_it_says_first_that_all_is_predicted(alone):
    assert re.fullmatch(r"Predicted (PASS|FAIL) · llama3-70b-h100-pp4tp2-fp16 · plan", alone.of("title")[0])
    assert alone.of("header") == [
        "Plan · predicted by simulation, not measured llama3-70b-h100-pp4tp2-fp16 Meta-Llama-3-70B-Instruct, "
        "70.6 B parameters, float16 · pp4 x tp2: 4 pipeline stages on 2 GPUs each · 8 x h100-sxm"
    ]
    assert alone.of("strong") in (["PASS predicted"], ["FAIL predicted"])


def test_every_target_is_listed_with_its_predicted_value(prediction, alone):
    rows = alone.of("tr")
    assert rows[0] == "Metric Result Predicted Target Margin"
    assert len(prediction.targets) == 9
    for target in prediction.targets:
        figures = (
            wording.quantity(target.measured, target.unit),
            wording.limit(target),
            wording.margin(target),
        )
        assert " ".join(f"{target.label} {target.note} {target.outcome} {' '.join(figures)}".split()) in rows


def test_every_chart_is_there(alone, compared):
    for found in (alone, compared):
        assert found.of("h3") == [*CHARTS, "One second of the pipeline"]
        assert len(found.of("svg")) == 4 and all(found.of("svg"))


def test_tiles_hold_the_figures_of_the_prediction(prediction, alone):
    found, capacity = prediction.measured.distributions, prediction.capacity
    wanted = [wording.number(found[name].percentile(q)) for name in ("ttft_ms", "tpot_ms") for q in (50, 99)]
    wanted += [wording.rate(capacity.highest), wording.rate(capacity.saturated), wording.share(capacity.bubble), "25.6"]
    assert alone.of("b") == wanted


def test_the_memory_of_the_flagship_is_written_in_its_bars(prediction):
    """docs/why/memory.md: 15.938 GiB of layers, 20 GiB of KV cache, 67.66 GiB the limit."""
    chart = memory_chart(prediction)
    texts = Page(chart.svg).of("text")
    assert texts.count("15.9") == texts.count("20.0") == texts.count("4.2") == 8
    assert [texts.count(f"{free} free") for free in ("25.6", "27.6", "26.6")] == [2, 4, 2]
    assert "limit 85 %: 67.7 GiB" in texts and "GPU 7 · stage 3" in texts
    assert "64 sequences of 8,192 tokens. Under the limit 145 fit" in chart.caption
    assert [key.label for key in chart.keys][-1] == "free" and len(chart.keys) == 6


def test_a_gpu_that_is_too_full_and_replicas_are_said(prediction, monkeypatch):
    monkeypatch.setattr(pages, "_charts", lambda *_: [])
    full = replace(prediction, deployment=small(hardware={"gpu_memory_limit": 0.45}))
    assert "Too full by 6.2 GiB, fullest GPU" in Page(page(full, None)).of("main")[0]
    assert "6.2 GiB over the limit, so some sequences wait" in memory_chart(full).caption
    two = replace(prediction, deployment=small(parallel={"tp": 4, "pp": 1, "replicas": 2}))
    chart = memory_chart(two)
    assert "One replica of 2; the others are the same." in chart.caption
    assert "GPU 3" in Page(chart.svg).of("text") and "GPU 4" not in Page(chart.svg).of("text")


def test_the_timeline_shows_every_stage_and_the_prompt_tokens_of_steps(prediction):
    chart = timeline_chart(prediction)
    texts = Page(chart.svg).of("text")
    assert [text for text in texts if text.startswith("stage")] == ["stage 0", "stage 1", "stage 2", "stage 3"]
    assert "1,024" in texts
    assert {key.label for key in chart.keys} <= {f"micro-batch {n}" for n in range(4)}
    assert f"the bubble was {wording.share(prediction.simulation.bubble)} of the stage time" in chart.caption


def test_the_sweep_goes_past_what_the_layout_can_serve(prediction):
    points = points_of(prediction, prediction.capacity.saturated)
    assert [point.rate / prediction.capacity.saturated for point in points] == pytest.approx(SHARES)
    assert points[-1].ttft_p50 > 2 * points[0].ttft_p50
    assert all(point.ttft_p50 <= point.ttft_p99 and point.tpot_p50 <= point.tpot_p99 for point in points)
    assert points_of(prediction, math.inf) == ()


def test_every_layout_is_in_the_table_in_the_plots_and_marked_if_it_is_yours(compared, comparison):
    (table,) = [table for table in compared.of("table") if table.startswith("Layout")]
    names = ["1 tp8 FAIL", "2 pp4 x tp2 yours", "3 8 x tp1 TOO BIG"]
    assert [table.index(name) for name in names] == sorted(table.index(name) for name in names)
    assert "does not fit by" in table and "12 %" in table
    assert [classes for _, name, classes in compared.attributes if name == "class"].count("own") == 1
    keys = compared.of("li")
    assert keys.count("pp4 x tp2 (yours)") == keys.count("tp8") == 2 and "8 x tp1" not in keys


def test_without_a_comparison_there_is_no_table_of_layouts(alone):
    assert "Layouts compared" not in alone.of("h2")
    assert alone.of("li").count("pp4 x tp2") == 2


def test_a_layout_that_was_not_compared_is_said_to_be_missing(prediction, comparison, monkeypatch):
    monkeypatch.setattr(pages, "sweep", lambda predictions, progress: [()] * len(predictions))
    found = Page(page(prediction, Comparison(comparison.layouts[::2], None, "throughput")))
    assert "Ordered by saturated throughput" in found.of("main")[0]
    assert "Your own layout is not in the table" in found.of("main")[0]
    assert found.of("h3") == [CHARTS[0], "One second of the pipeline"], "no points, no plot against rate"


def test_no_script_and_nothing_from_elsewhere(prediction, comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "sweep", lambda predictions, progress: [(), ()])
    write_page(tmp_path / "plan.html", prediction, comparison)
    html = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|@import|https?://(?!www\.w3\.org/)", html)
    found = Page(html)
    links = [value for _, name, value in found.attributes if name in ("src", "href", "xlink:href")]
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    assert len(ids) == len(set(ids)), "ids of different plots must not clash"
    assert "prefers-color-scheme: dark" in html and "var(--s0)" in html
    assert not re.search(r"#0[a0]0[a0]0", html), "every stand-in colour has its variable"
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.html"]


def test_names_are_escaped(prediction, monkeypatch):
    monkeypatch.setattr(pages, "_charts", lambda *_: [])
    odd = small(model={"path": Path("/models/<b>A & B</b>")}).model_copy(update={"name": "<i>x</i>&amp;"})
    html = page(replace(prediction, deployment=odd), None)
    assert "<i>" not in html and "<b>A" not in html
    found = Page(html)
    assert found.of("h1") == ["<i>x</i>&amp;"]
    assert "<b>A & B</b>" in found.of("pre")[0] and "path: /models/<b>A & B</b>" in found.of("pre")[0]


def test_refused_requests_take_for_ever_and_not_inf(monkeypatch):
    monkeypatch.setattr(pages, "_charts", lambda *_: [])
    flooded = predict(small(limits={"max_queue_size": 1}, workload={**WORKLOAD, "rate": 900.0}))
    assert flooded.simulation.refused
    found = Page(page(flooded, None))
    assert re.search(r"TTFT P99 [^≤]* FAIL never ≤ 1,500 ms –", " ".join(found.of("tr")))
    assert "TTFT P99, no steady state" in found.of("main")[0]
    assert "900 requests/s arrive and" in found.of("main")[0]
    assert "never: this percentile is infinite, because too many requests are refused" in found.of("main")[0]
    assert not re.search(r"\binf\b|∞|\bnan\b", found.of("main")[0])


def test_infinite_points_end_a_line_with_a_triangle(prediction):
    points = (Point(1, 100, 200, 20, 30), Point(2, 120, 400, 22, 33), Point(3, 900, math.inf, 25, math.inf))
    slo = prediction.deployment.slo
    ttft, tpot = rate_charts([Line("tp8", True, points)], slo, 2.5)
    assert "A triangle: no value" in ttft.caption
    assert "workload 2.5/s" in Page(ttft.svg).of("text") and "P99 ≤ 1,500" in Page(ttft.svg).of("text")
    assert {"P50 ≤ 50", "P99 ≤ 100"} <= set(Page(tpot.svg).of("text"))
    finite, _ = rate_charts([Line("tp8", True, points[:2])], slo, None)
    assert "triangle" not in finite.caption and not any("workload" in text for text in Page(finite.svg).of("text"))
    assert rate_charts([Line("tp8", True, ())], slo, 1.0) == []


def test_the_verdict_in_a_sentence(prediction, monkeypatch):
    late = Target("ttft_ms.p99", "TTFT P99", "ms", "≤", 1500, 2000.0, False, -1 / 3)
    idle = Target("gpu_utilisation", "GPU utilisation", "share", "within", (0.7, 0.85), 0.5, False, -0.2)
    good = replace(late, measured=100.0, passed=True)

    def judged(*targets: Target, remedy: Remedy | None = None) -> tuple[str, str, str]:
        found = replace(prediction)
        vars(found)["targets"] = targets
        return wording.verdict(found, remedy)

    assert judged(good) == ("PASS", "PASS", "Meets its one target.")
    assert judged(late, good, remedy=Remedy("limits.max_num_tokens: 256", 12.75, meets_slo=True)) == (
        "FAIL",
        "FAIL",
        "Misses 1 of 2 targets: TTFT P99 by 500 ms. With limits.max_num_tokens: 256 it would serve 13 requests/s "
        "in time and meet the SLO.",
    )
    assert judged(late, good, remedy=Remedy("model.quantization: fp8", None, missed=("TTFT P99",)))[2].endswith(
        "With model.quantization: fp8 it would still miss TTFT P99."
    )
    assert judged(good, idle) == (
        "FAIL",
        "UNSURE",
        "Misses 1 of 2 targets: GPU utilisation, 50 % and not within 70 % to 85 %. "
        "Every target for latency and rate is met.",
    )


def test_the_traffic_in_words(prediction):
    assert wording.traffic(prediction) == {
        "requests": "100, of which the first 5 warm up and are not judged",
        "arrivals": "at random (Poisson), 3 requests/s on average",
        "prompts": "1,024 tokens each",
        "answers": "12 tokens each",
        "seed": "0; the same seed gives the same requests",
    }
    lengths = {"prompt_tokens": Lengths(min=10, max=90), "output_tokens": Lengths(mean=50, max=99)}
    users = small(workload={**WORKLOAD, **lengths, "arrivals": "closed", "users": 7, "shared_prefix_tokens": 4})
    found = wording.traffic(replace(prediction, deployment=users))
    assert found["arrivals"] == "closed loop: 7 users, each sends its next request when the last one has ended"
    assert found["prompts"] == "10 to 90 tokens, each length equally likely"
    assert found["answers"] == "50 tokens on average (log-normal, standard deviation 1 x the mean), from 1 to 99"
    assert found["in common"] == "the first 4 tokens of all prompts are the same"


@pytest.mark.parametrize("name", ["missing/plan.html", "file/plan.html", "folder"])
def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(name, prediction, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "page", lambda *_: "a page")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ToolkitError, match=rf"{name}: (cannot be written|is a directory)") as error:
        write_page(tmp_path / name, prediction, None)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_fails_leaves_the_one_before(prediction, tmp_path, monkeypatch):
    (tmp_path / "plan.html").write_text("before")
    monkeypatch.setattr(pages, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(tmp_path / "plan.html", prediction, None)
    assert (tmp_path / "plan.html").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_workload_of_one_request_has_the_capacity_of_many(monkeypatch):
    monkeypatch.setattr(pages, "_charts", lambda *_: [])
    one, many = (predict(small(workload={**WORKLOAD, "requests": count})) for count in (1, 400))
    assert one.capacity.saturated == pytest.approx(many.capacity.saturated, rel=0.05)
    assert not re.search(r"\binf\b|∞", Page(page(one, None)).of("main")[0])


def test_shares_are_whole_per_cent_and_never_minus_nothing():
    assert [wording.share(value) for value in (-1e-17, 0.004, 0.539, 1.0)] == ["0 %", "0 %", "54 %", "100 %"]
