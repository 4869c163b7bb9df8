"""Runs a supervisor in a process of its own: `python -m toolkit.serve FILE ENGINE`, as toolkit.serve.replicas does."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.serve import own_log
from toolkit.serve.foreground import serve_here
from toolkit.serve.replicas import ERROR, HELD


def main(*arguments: str) -> int:
    """Supervise one deployment, or one of its replicas. Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("engine")
    parser.add_argument("--replica", type=int)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument(HELD, action="store_true", dest="held")
    options = parser.parse_args(arguments)
    if options.held:
        threading.Thread(target=_end_with_starter, name="held", daemon=True).start()
    try:
        deployment = load_deployment(options.file, options.engine)
        if options.replica is not None:
            deployment = deployment.per_replica()[options.replica]
        if options.held:  # its output goes to its log
            own_log.bound(deployment.run_dir / own_log.NAME)
        serve_here(deployment, options.verbose)
    except ToolkitError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return 1
    return 0


def _end_with_starter() -> None:
    """Drain when stdin ends, as the process that started this one is gone. A byte before that means to go on alone."""
    if not os.read(sys.stdin.fileno(), 1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
