"""The text of a server's /metrics."""

from __future__ import annotations

from toolkit.slo.server_metrics import parse


def test_the_text_of_prometheus() -> None:
    text = '# TYPE x gauge\nx 1\ny{a="1",b="q\\"}"} 2.5e3 1700000000\nz{} NaN\nbroken{\nnot a metric at all\n\nw +Inf\n'
    assert [tuple(value[:3]) for value in parse(text)] == [("x", {}, 1.0), ("y", {"a": "1", "b": 'q\\"}'}, 2500.0)]
