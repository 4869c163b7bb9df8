"""In the place of `python -m toolkit.serve`: says and does what a file beside the deployment tells this replica.

The file has a line for each: `REPLICA STEP STEP ...`. A step is `fail`, `traceback`, `die`, `fail-later`, `stubborn`,
`mute` (its log is full, and only its state says that it is ready); without one it gets ready and serves until it is
asked to stop. What became of it is in REPLICA.log.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

file, replica = Path(sys.argv[1]), sys.argv[sys.argv.index("--replica") + 1]
todo = file.with_name("steps").read_text().splitlines()
steps = next((line.split()[1:] for line in todo if line.startswith(replica)), [])
log = file.with_name(f"{replica}.log").open("a")
asked = 0


def say(line: str) -> None:
    print(line, flush=True)


def wait_for_both() -> None:
    """Wait until both replicas are ready and `toolkit serve` has had time to notice."""
    while not all(file.with_name(f"{number}.ready").exists() for number in (0, 1)):
        time.sleep(0.02)
    time.sleep(0.5)  # nothing shows that it has noticed


def ask(number: int, frame: object) -> None:
    global asked
    asked += 1


signal.signal(signal.SIGTERM, ask)
print(os.getpid(), file=log, flush=True)
say("starting 1 rank")
if "fail" in steps:
    say("error: rank 0 has no memory. Buy some.")
    sys.exit(1)
if "traceback" in steps:
    sys.exit("Traceback: a mistake of ours")
if "mute" in steps:
    state = {"phase": "ready", "pid": os.getpid(), "run_id": "00000000", "since": 0.0, "message": ""}
    state["tmp"] = "/nowhere/toolkit-run-00000000-x"
    (file.parent / "out" / "run" / f"replica{replica}" / "state.json").write_text(json.dumps(state))
else:
    say(f"ready: http://{replica}\nnext: toolkit ask {file}")
    file.with_name(f"{replica}.ready").touch()
if "die" in steps:
    wait_for_both()
    os.kill(os.getpid(), signal.SIGKILL)
if "fail-later" in steps:
    wait_for_both()
    say("error: rank 0 was killed by SIGKILL")
    sys.exit(1)
while asked < (2 if "stubborn" in steps else 1):
    time.sleep(0.02)
say("stopped: none cut")
print(f"asked {asked}", file=log, flush=True)
