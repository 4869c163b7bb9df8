"""A command in a container of enroot. Options and files: doc/cmd/start.md of NVIDIA/enroot.

There is no daemon: the container is a child of this process. It has this process's user, limits (ulimit, control
group, cores) and network, and the machine's /dev/shm.
"""

from __future__ import annotations

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.runtime.images import image_file
from toolkit.runtime.mounts import as_fstab, mounts
from toolkit.runtime.needs import Needs, Part, Wrapped, cuda_order, further_options, pinned


def in_enroot(deployment: Deployment, needs: Needs) -> Wrapped:
    """Wrap a command so that it runs in enroot."""
    for name, value in needs.environment.items():
        if "\n" in value:
            raise ToolkitError(
                f"enroot cannot pass on a variable with a line break in it: {name}", hint="Use another runtime."
            )
    gpus = {"NVIDIA_VISIBLE_DEVICES": ",".join(map(str, needs.gpus)) or "void"}
    order = cuda_order(needs.gpus)
    parts = [
        *pinned(needs),
        Part(("enroot", "start"), "runtime.kind: enroot"),
        Part(("--rw",), "its root can be written, in memory: gone when it ends"),
        *(Part(("--mount", as_fstab(mount)), mount.why) for mount in mounts(needs)),
        *(Part(("--env", f"{name}={value}"), "the GPUs that it sees") for name, value in gpus.items()),
        *(Part(("--env", f"{name}={value}"), "the order of the ranks") for name, value in order.items()),
        Part(("--env", "HOME=/tmp"), "a home that can be written; enroot's own /tmp, in memory"),
        *(Part(("--env", f"{name}={value}"), "for the command") for name, value in needs.environment.items()),
        *(Part(("--env", name), "a secret: by name, enroot takes its value from here") for name in needs.secrets),
        *further_options(deployment),
        Part((str(image_file(deployment)),), "the image, started as it is; see runtime.image_file"),
    ]
    # Enroot's hook for GPUs prefers the variables of this process, which a batch system may set, to those of --env.
    return Wrapped(tuple(parts), gpus, {name: name for name in needs.secrets})
