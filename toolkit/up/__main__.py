"""`python -m toolkit.up FILE ENGINE`: toolkit up in the background, started by toolkit.up.control."""

from __future__ import annotations

import sys

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.up.supervisor import up_here

if __name__ == "__main__":
    try:
        up_here(load_deployment(sys.argv[1], sys.argv[2]))
    except ToolkitError as error:
        sys.exit(f"error: {error}")
