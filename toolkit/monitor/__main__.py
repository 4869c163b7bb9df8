"""`python -m toolkit.monitor FILE ENGINE [NAME=URL ...]`: the exporter as a part of `toolkit up`.

NAME=URL is a page of metrics that only `toolkit up` knows: of Dynamo's front end, and of each worker.

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
    file, engine, *pages = sys.argv[1:]
    urls = dict(page.split("=", 1) for page in pages)
    try:
        export(load_deployment(file, engine), urls, threading.Event().wait)
    except ToolkitError as error:
        sys.exit(f"error: {error}")
