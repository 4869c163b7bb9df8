"""Notes each file of toolkit/ in which this process calls a function. `files_entered.py` puts it on PYTHONPATH."""

import inspect
import os
import sys
import threading
from types import FrameType

LOG = os.environ["FILES_ENTERED"]
PACKAGE = os.environ["FILES_ENTERED_IN"] + os.sep
entered: set[str] = set()


def note(frame: FrameType, event: str, argument: object) -> None:
    code = frame.f_code
    # Bodies of modules and classes are not optimised code: importing alone enters no file.
    if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED or code.co_filename in entered:
        return
    entered.add(code.co_filename)
    if code.co_filename.startswith(PACKAGE):
        # One write, so that lines of several processes do not mix.
        file = os.open(LOG, os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{code.co_filename.removeprefix(PACKAGE)}\n".encode())
        os.close(file)


threading.setprofile(note)
sys.setprofile(note)
