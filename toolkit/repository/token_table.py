"""Writes the bytes of each token: the table from which the served models make text.

Processes map the table into memory, so they start at once and share it. To parse tokenizer.json of Llama 3 would take
seconds and 100 MB in each process. triton_repo/shared/token_text.py reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

TEXT, BYTE, HIDDEN = 0, 1, 2
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def write_token_table(tokenizer_file: Path, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write bytes.npy, ends.npy, kinds.npy and decoder.npy. Raises ToolkitError for an unknown decoder.

    `tokenizer` is the file's, where the caller has read it.
    """
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = tokenizer or Tokenizer.from_file(str(tokenizer_file))
    decoder = Decoder(tokenizer_file)
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    contents, kinds = [], []
    for id, token in enumerate(spellings(tokenizer)):
        content, kind = decoder.read(token)
        contents.append(content)
        kinds.append(HIDDEN if id in special else kind)
    arrays: dict[str, NDArray[Any]] = {
        "bytes": np.frombuffer(b"".join(contents), np.uint8),
        "ends": np.cumsum([len(content) for content in contents], dtype=np.int64),
        "kinds": np.array(kinds, np.uint8),
        "decoder": np.array([decoder.sentence_piece, decoder.spaces], np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def longest_token_bytes(tokenizer_file: Path, tokenizer: Tokenizer) -> int:
    """The bytes of the longest token. With an unknown decoder: the bytes of the longest spelling, which are at least as
    many."""
    try:
        read = Decoder(tokenizer_file).read
    except ToolkitError:
        return max(len(token.encode()) for token in spellings(tokenizer))
    return max(len(read(token)[0]) for token in spellings(tokenizer))


def spellings(tokenizer: Tokenizer) -> Iterator[str]:
    """Each token in the order of the ids, "" for an id without a token."""
    for id in range(max(tokenizer.get_vocab().values(), default=-1) + 1):
        # Not get_vocab's spelling: an added token may be normalised, and decodes as the library normalised it.
        yield tokenizer.id_to_token(id) or ""


class Decoder:
    """The `decoder` of a tokenizer.json: byte-level, or the sequence of SentencePiece models.

    It drops `spaces` spaces at the start of a text. Raises ToolkitError for any other decoder.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        from toolkit.files.json_file import read_json

        found = read_json(tokenizer_file).get("decoder") or {}
        steps = found.get("decoders", [found])
        kinds = [step.get("type") for step in steps]
        self.sentence_piece = kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"])
        self.space = _replaced(steps[0]) if self.sentence_piece else ""
        stripped = _stripped(steps[3]) if self.sentence_piece and steps[3:] else 0
        self.spaces = stripped or 0
        if self.space is None or stripped is None or not (self.sentence_piece or kinds == ["ByteLevel"]):
            raise ToolkitError(
                f"decoder: {'+'.join(map(str, kinds))} is not supported",
                where=tokenizer_file,
                hint="Llama models have ByteLevel, or Replace+ByteFallback+Fuse and perhaps Strip.",
            )

    def read(self, token: str) -> tuple[bytes, int]:
        """(bytes, kind) of a token as the vocabulary writes it."""
        if not self.sentence_piece:
            return byte_level_bytes(token), TEXT
        text = token.replace(self.space or "", " ")
        byte = BYTE_TOKEN.fullmatch(text)
        return (bytes.fromhex(byte[1]), BYTE) if byte else (text.encode(), TEXT)


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; for an added token outside the alphabet, its UTF-8."""
    try:
        return bytes([BYTE_LEVEL_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The byte for each character of a byte-level vocabulary: itself if it is printable, else 256 + n."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def _replaced(step: Mapping[str, Any]) -> str | None:
    """The text that a Replace step turns into a space; None for another Replace step."""
    return step["pattern"].get("String") if step.get("content") == " " else None


def _stripped(step: Mapping[str, Any]) -> int | None:
    """How many spaces a Strip step removes from the start; None for another Strip step."""
    return step["start"] if step.get("content") == " " and step.get("stop") == 0 else None
