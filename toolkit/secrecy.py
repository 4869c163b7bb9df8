"""Finds secrets, so that no command line (which every user can read) and no text that is sent away holds one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

_WORD = r"(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:API|ACCESS|PRIVATE|SECRET)[_-]?KEY)"
_SECRET = rf"[A-Za-z0-9_]*?{_WORD}"
SHORTEST_SECRET = 8
"""Fewest characters of a secret: a shorter value occurs in texts by chance."""
INSTEAD = "[secret]"

_VALUE = r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|(?:\\.|[^\s"',;(){}\[\]\\])+)"""
_ASSIGNED = re.compile(rf"""({_WORD})((?:\\?["'])?[ \t]*[=:][ \t]*)({_VALUE})""", re.IGNORECASE)
"""HF_TOKEN=x, "hf_token": "x", hf_token: x; also in JSON that is a string in JSON."""
_OPTION = re.compile(rf"""(--(?=[a-z])[a-z0-9_-]{{0,40}}{_WORD}["']?,?\s+)({_VALUE})""", re.IGNORECASE)
"""--hf-token x; "--hf-token", "x"."""
_PARAMETER = re.compile(rf"""({_WORD}"\s*value:?\s*\{{\s*string_value:\s*)({_VALUE})""", re.IGNORECASE)
"""A parameter in a config.pbtxt."""
_SAID = re.compile(
    rf"""(?<![A-Za-z0-9_-])((?:[a-z0-9]+[_-])*(?:key|pass|passphrase|pwd)(?:\\?["'])?[ \t]*[:=][ \t]*)"""
    rf"""(?!"[^"\n]*"[\s,]*value\b)({_VALUE})""",
    re.IGNORECASE,
)
"""my key: x, "pass": "x"; but not key: "name" value: ..., a parameter in a config.pbtxt."""
_SAID_NAME = re.compile(r"(?:^|[ _-])pass(?:phrase)?$|[ _-]key$", re.IGNORECASE)
"""The same for a name in JSON, where "key" alone has many meanings."""
_QUERY = re.compile(r"""(://[^\s"'<>?]+\?)[^\s"'<>]+""")
"""The query of a URL: signatures and tokens."""
_SHAPES = re.compile(
    r"hf_(?=[A-Za-z]*[0-9A-Z])[A-Za-z0-9]{8,}|nvapi-[\w-]{8,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|\bsk-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|(?<=Bearer )[^\s\"',\\]{8,}|(?<=Basic )[A-Za-z0-9+/]{8,}=*|(?<=://)[^\s/@\"'\\]+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
"""Secrets by their form, whatever their name is. hf_transfer is a package, not a secret."""
_OF_TEXT = re.compile(r"(?:bos|eos|pad|unk|sep|cls|mask|(?:time_to_)?first)_token$", re.IGNORECASE)
"""Tokens of a tokenizer, and those that a load test measures."""
_NUMBER = re.compile(r"[-+0-9.,e]+|true|false|null|none", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable with this name holds a secret, for example HF_TOKEN or NGC_API_KEY."""
    return re.fullmatch(_SECRET, name, re.IGNORECASE) is not None


def tells_a_secret(argument: str) -> str | None:
    """The name of the secret whose value an argument holds, as in `HF_TOKEN=...` or `--env=HF_TOKEN=...`."""
    match = re.search(rf"(?<![A-Za-z0-9_])({_SECRET})=.", argument, re.IGNORECASE)
    return match[1] if match else None


class Scrubber:
    """Removes secrets from texts: the values of secret variables, what is assigned to the name of a secret, and what
    has the form of a secret. It removes rather too much than too little.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        values = {form for name, value in variables.items() if is_secret(name) for form in _forms(value)}
        alternatives = sorted(map(re.escape, values), key=len, reverse=True)
        self._values = re.compile("|".join(alternatives) if alternatives else r"(?!)")

    def text(self, text: str) -> str:
        text = _SHAPES.sub(INSTEAD, self._values.sub(INSTEAD, text))
        text = _SAID.sub(_without_value_said, _QUERY.sub(rf"\1{INSTEAD}", text))
        text = _ASSIGNED.sub(_without_value, text)
        return _PARAMETER.sub(_hidden, _OPTION.sub(_hidden, text))

    def data(self, value: Any) -> Any:
        """The JSON value with all secrets removed."""
        if isinstance(value, dict):
            return {
                self.text(name): INSTEAD if isinstance(inner, str) and _names_a_secret(name) else self.data(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self.data(inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value


def _forms(value: str) -> Iterator[str]:
    """The forms of a value in a text, in JSON in a text, and in a URL. Each line of a long value (a key) counts too."""
    for part in (value.strip(), *value.splitlines()):
        if len(part) >= SHORTEST_SECRET:
            yield from (part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1], quote(part, safe=""))


def _names_a_secret(name: str) -> bool:
    return (is_secret(name) and not _OF_TEXT.match(name)) or _SAID_NAME.search(name) is not None


def _without_value(match: re.Match[str]) -> str:
    start, between, value = match.start(), match[2], match[3]
    if _OF_TEXT.search(match.string, max(0, start - 10), match.end(1)) or (":" in between and _NUMBER.fullmatch(value)):
        return match[0]
    return match[1] + between + _quoted(value)


def _without_value_said(match: re.Match[str]) -> str:
    is_folder = match[2].startswith("/") and "pwd" in match[1].lower()
    return match[0] if is_folder or _NUMBER.fullmatch(match[2]) else _hidden(match)


def _hidden(match: re.Match[str]) -> str:
    return match[1] + _quoted(match[2])


def _quoted(value: str) -> str:
    """The placeholder, in the quotation marks that the value has."""
    mark = value[0] if value[0] in "\"'" else ""
    return f"{mark}{INSTEAD}{mark}"
