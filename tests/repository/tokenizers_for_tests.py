"""Tokenizers of the two families: the tiny Llama's is byte-level, this one is built as Llama 2's."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors

PIECES = [
    "▁",
    "a",
    "b",
    "▁a",
    "▁b",
    "▁ab",
    "o",
    "k",
    "ok",
    "▁ok",
    "é",
    "\N{REPLACEMENT CHARACTER}",
    "▁▁",
    "▁▁a",
    "<0x>",
]
MERGES = [("▁", "a"), ("▁", "b"), ("▁a", "b"), ("o", "k"), ("▁", "ok"), ("▁", "▁"), ("▁▁", "a")]


def sentence_piece_tokenizer(file: Path) -> Tokenizer:
    """A small SentencePiece-like tokenizer with BOS, byte fallback, and a space put before every text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocabulary = {name: id for id, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(file))
    return Tokenizer.from_file(str(file))
