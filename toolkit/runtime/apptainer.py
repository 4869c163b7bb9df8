"""A command in a container of apptainer (1.1 or newer). Options: apptainer.org/docs/user, `apptainer exec`.

There is no daemon: the container is a child of this process. It has this process's user, limits (ulimit, control
group, cores) and network, the machine's /dev/shm and /tmp, and the user's home.
"""

from __future__ import annotations

from toolkit.config.deployment import Deployment
from toolkit.runtime.images import image_file
from toolkit.runtime.mounts import Mount, as_csv, mounts
from toolkit.runtime.needs import Needs, Part, Wrapped, further_options, pinned

PREFIX = "APPTAINERENV_"
"""Apptainer sets a variable with this prefix in the container, without the prefix, even with --cleanenv."""


def in_apptainer(deployment: Deployment, needs: Needs) -> Wrapped:
    """Wrap a command so that it runs in apptainer."""
    variables = {"PYTHONNOUSERSITE": "1", **needs.environment}
    if needs.gpus:
        variables |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, needs.gpus))}
    shown = {name: value for name, value in variables.items() if not set(value) & set('="')}
    parts = [
        *pinned(needs),
        Part(("apptainer", "exec"), "runtime.kind: apptainer"),
        Part(("--cleanenv",), "PYTHONPATH, LD_LIBRARY_PATH and the like of this machine do not fit what is inside"),
        Part(("--no-eval",), "values are taken as they are, also with a $ in them"),
        *([Part(("--nv",), "the driver's libraries and all GPUs; CUDA_VISIBLE_DEVICES chooses")] if needs.gpus else []),
        Part(("--pwd", "/tmp"), "a working directory that can be written"),
        *(Part(("--mount", _mount(mount)), mount.why) for mount in mounts(needs)),
        *(Part(("--env", f"{name}={value}"), _why(name)) for name, value in shown.items()),
        *further_options(deployment),
        Part((str(image_file(deployment)),), "the image; see runtime.image_file"),
    ]
    # --env splits a value at commas if it has a second = or quotes in it.
    others = {PREFIX + name: value for name, value in variables.items() if name not in shown}
    return Wrapped(tuple(parts), others, {PREFIX + name: name for name in needs.secrets})


def _mount(mount: Mount) -> str:
    """--mount, because --bind splits at commas and colons."""
    fields = ["type=bind", f"source={mount.path}", f"destination={mount.path}"]
    return as_csv(*fields, *([] if mount.write else ["ro"]))


def _why(name: str) -> str:
    if name == "PYTHONNOUSERSITE":
        return "the home is the user's own: Python packages in it are not for the image's Python"
    return "the GPUs that it uses, as nvidia-smi counts them" if name.startswith("CUDA_") else "for the command"
