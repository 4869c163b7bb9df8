"""The supervisor in the background: `python -m toolkit.serve FILE ENGINE`, started by serve(detach=True)."""

from __future__ import annotations

import sys

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.serve.control import ERROR
from toolkit.serve.supervisor import serve_here


def main(file: str, engine: str, *options: str) -> int:
    try:
        serve_here(Deployment.load(file, engine), verbose="--verbose" in options)
    except ToolkitError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
