"""Text of a token stream: chunks whose concatenation is the tokenizer's decoding of all tokens at once.

Decoding tokens one by one breaks characters of several bytes and loses spaces; decoding everything again
for each token is quadratic. Here each tokenizer family keeps what it must and no more: a byte-level one
(Llama 3, SmolLM2) the bytes of an incomplete character, a SentencePiece one (Llama 2, Mistral) the last
few tokens. Every push costs the same, however long the answer is.
"""

import codecs
import json
import os

from tokenizers import Tokenizer

WINDOW = 8  # tokens that a SentencePiece chunk is decoded with, so that spaces come out as in the middle of a text


class Detokenizer:
    """The decoding half of a tokenizer.json; makes a stream of text for each sequence of tokens.

    `path` is the file. Raises ValueError, one line, when it is missing, broken or of an unknown kind.
    """

    def __init__(self, path, skip_special_tokens=True):
        self.tokenizer = load(path)
        self.kind = decoder_kind(self.tokenizer, path)
        added = self.tokenizer.get_added_tokens_decoder()
        self.hidden = {id for id, token in added.items() if token.special} if skip_special_tokens else set()
        self.skip_special_tokens = skip_special_tokens
        self._bytes = {}

    def stream(self):
        return ByteLevelStream(self) if self.kind == "ByteLevel" else SentencePieceStream(self)

    def decode(self, ids):
        """The text of all ids at once, by the tokenizer itself."""
        return self.tokenizer.decode(ids, skip_special_tokens=self.skip_special_tokens)

    def token(self, id):
        """A token as the vocabulary writes it; None for hidden ones and for ids outside the vocabulary."""
        return None if id in self.hidden or id < 0 else self.tokenizer.id_to_token(id)

    def token_bytes(self, id):
        """The bytes of one token of a byte-level vocabulary."""
        found = self._bytes.get(id)
        if found is None:
            found = self._bytes[id] = byte_level_bytes(self.token(id) or "")
        return found


class ByteLevelStream:
    """Tokens are bytes of UTF-8, so text comes out as soon as a character is complete."""

    def __init__(self, detokenizer):
        self._token_bytes = detokenizer.token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, ids, last=False):
        """The text that `ids` add; with `last` also what is left of an incomplete character."""
        return self._decode(b"".join(map(self._token_bytes, ids)), last)


class SentencePieceStream:
    """Tokens are pieces of text, or single bytes where the vocabulary has no piece.

    A run of byte tokens decodes as a whole: one bad byte turns all of them into replacement characters,
    so nothing of a run can be told before it ends.
    """

    def __init__(self, detokenizer):
        self._detokenizer = detokenizer
        self._window = []
        self._known = ""  # the window's text as far as it has been told

    def push(self, ids, last=False):
        token = self._detokenizer.token
        self._window += [id for id in ids if token(id)]
        if not self._window or (is_byte(token(self._window[-1])) and not last):
            return ""
        text = self._detokenizer.decode(self._window)
        chunk = text[len(self._known) :]
        self._window = self._shortened()
        self._known = self._detokenizer.decode(self._window)
        return chunk

    def _shortened(self):
        """The last tokens of the window, not cut inside a run of bytes."""
        start = max(0, len(self._window) - WINDOW)
        while start > 0 and is_byte(self._detokenizer.token(self._window[start])):
            start -= 1
        return self._window[start:]


def load(path):
    """The tokenizer in a tokenizer.json. Raises ValueError that names the file."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path}: is not a tokenizer.json: {error}") from None


def decoder_kind(tokenizer, path):
    """ "ByteLevel" or "SentencePiece". Raises ValueError for a decoder that no Llama tokenizer has."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    parts = [part["type"] for part in decoder.get("decoders", [decoder]) if part]
    if parts == ["ByteLevel"]:
        return "ByteLevel"
    strips_end = any(part["type"] == "Strip" and part["stop"] for part in decoder.get("decoders", []))
    if parts and set(parts) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and not strips_end:
        return "SentencePiece"
    raise ValueError(
        f"{path}: decoder {'+'.join(parts) or 'none'} is not supported, expected ByteLevel or SentencePiece's"
    )


def is_byte(token):
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _byte_level_alphabet():
    """Which byte each character of a byte-level vocabulary stands for: itself where it prints, else 256 + n."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def byte_level_bytes(token):
    """The bytes that a byte-level token stands for; an added token outside the alphabet is its own UTF-8."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode("utf-8")
