"""Errors of Triton and its models that quote a user's words, which are those of a failed engine."""

from __future__ import annotations

QUOTED = (
    "unexpected inference input 'nccl' for model 'ensemble'",
    "[request id: nccl-7] inference request batch-size must be <= 1 for 'ensemble'",
    "[request id: maximum queue size] unexpected inference input 'a' for model 'ensemble'",
    "stop_words: 'a CUDA error: device-side assert', expected at most 64 tokens",
    'bad_words: "this server is ending" encodes to no tokens',
    r"""stop_words: 'it\'s "NCCL" that failed to allocate' encodes to no tokens""",
    """stop_words: "it's 'NCCL', isn't it" encodes to no tokens""",
    "[json.exception.parse_error.101] syntax error while parsing value; last read: '\"illegal memory access\"'",
    "the model doesn't know the word 'nccl', and it won't learn 'cuda out of memory'",
    "text_input: 'cudaMalloc and so on, clipped before its end...",
)
