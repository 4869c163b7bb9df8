"""Stands in for docker: a container is a process in a session of its own, with the variables that it is given only.

It takes the options that the toolkit gives and no others. Beside this file is a folder with the names of containers.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

IMAGES = Path(__file__).with_name("image")
NAMES = Path(__file__).with_name("containers")
ALONE = {"--rm", "--init", "--pull=never", "--ipc=host"}
WITH_VALUE = {"--name", "--gpus", "--ulimit", "--network", "--stop-timeout", "--user", "--env", "--workdir", "--mount"}
WITH_VALUE |= {"--memory", "--memory-swap", "--cpus"}


def refuse(what):
    sys.exit(print(f"docker: {what}", file=sys.stderr) or 125)


def run(arguments):
    options, place = [], 0
    while arguments[place].startswith("--"):
        name, wide = arguments[place], arguments[place] in WITH_VALUE
        if not wide and name not in ALONE:
            refuse(f"unknown flag: {name}")
        options.append((name, arguments[place + 1] if wide else ""))
        place += 1 + wide
    values = dict(options)
    for name, value in options:
        source = dict(field.partition("=")[::2] for field in value.split(",")).get("source")
        if name == "--mount" and not Path(source).exists():
            refuse(f"bind source path does not exist: {source}")
    variables = dict(value.partition("=")[::2] for name, value in options if name == "--env")
    variables |= {"PATH": f"{IMAGES}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    variables["NVIDIA_VISIBLE_DEVICES"] = values["--gpus"].strip('"').removeprefix("device=")
    image, *command = arguments[place:]
    if image.endswith("empty"):
        print(f"exec: {command[0]}: executable file not found in $PATH", file=sys.stderr)
        return 127
    command = [str(IMAGES / "tritonserver") if word.startswith("/opt/tritonserver/") else word for word in command]
    container = subprocess.Popen(command, env=variables, cwd=values["--workdir"], start_new_session=True)
    (NAMES / values["--name"]).write_text(str(container.pid))
    code = container.wait()
    (NAMES / values["--name"]).unlink(missing_ok=True)
    return code


def main(arguments):
    NAMES.mkdir(exist_ok=True)
    if arguments[0] == "run":
        return run(arguments[1:])
    if arguments[0] == "info":
        print('{"ServerVersion": "27.0", "Runtimes": {"nvidia": {}}}')
    elif arguments[:2] == ["container", "inspect"]:
        print("running")
        return 0 if (NAMES / arguments[-1]).exists() else 1
    elif arguments[:2] == ["rm", "--force"]:
        with Path(__file__).with_name("forced").open("a") as log:
            log.write(arguments[-1] + "\n")
        name = NAMES / arguments[-1]
        if name.exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(name.read_text()), signal.SIGKILL)
            name.unlink()
    elif arguments[:2] != ["image", "inspect"]:
        refuse(f"'{arguments[0]}' is not a docker command")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
