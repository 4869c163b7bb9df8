"""`python -m toolkit.monitor FILE ENGINE [FRONT_URL]`: the exporter as a part of `toolkit up`.

Standard input is a pipe from `toolkit up`; the exporter ends with it.
"""

from __future__ import annotations

import sys
import threading

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.held import end_with_starter
from toolkit.monitor.exporter import export

if __name__ == "__main__":
    end_with_starter()
    file, engine, *front_url = sys.argv[1:]
    try:
        export(load_deployment(file, engine), front_url[0] if front_url else None, threading.Event().wait)
    except ToolkitError as error:
        sys.exit(f"error: {error}")
