"""Which variables are secrets: their values never stand on a command line, which every user can read (ps)."""

from __future__ import annotations

import re

_SECRET = r"[A-Za-z0-9_]*?(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:API|ACCESS|PRIVATE|SECRET)_?KEY)"


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as HF_TOKEN and NGC_API_KEY do."""
    return re.fullmatch(_SECRET, name, re.IGNORECASE) is not None


def tells_a_secret(argument: str) -> str | None:
    """The name of the secret whose value an argument has, as `HF_TOKEN=...` or `--env=HF_TOKEN=...`."""
    found = re.search(rf"(?<![A-Za-z0-9_])({_SECRET})=.", argument, re.IGNORECASE)
    return found[1] if found else None
