"""Named kinds of traffic for `toolkit init`: prompt and output tokens per request."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """One kind of traffic."""

    prompt_tokens: int
    output_tokens: int
    what: str


PRESETS = {
    "chat-1k": Preset(1024, 128, "chat with some history"),
    "chat-2k": Preset(2048, 256, "chat with much history"),
    "rag-4k": Preset(4096, 256, "answers from retrieved documents"),
    "summary-7k": Preset(7168, 512, "summaries of long documents"),
    "code-1k": Preset(1024, 512, "code from a description"),
    "short": Preset(128, 128, "single questions"),
}
