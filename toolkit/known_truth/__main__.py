"""The process that KnownTruth starts: takes settings as JSON in its argument, serves until its stdin is closed."""

from __future__ import annotations

import json
import sys

from toolkit.errors import ToolkitError
from toolkit.known_truth.server import serve
from toolkit.known_truth.settings import Settings


def main() -> None:
    """Serve until stdin is closed, then print a summary as JSON."""
    values = json.loads(sys.argv[1])
    try:
        settings = Settings(**{**values, "faults": tuple(values["faults"])})
        done = serve(settings, lambda urls: print(json.dumps(urls), flush=True), parent=sys.stdin.fileno())
    except ToolkitError as error:
        sys.exit(str(error))
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
