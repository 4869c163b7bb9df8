"""Where the vendor's programs run: on this machine, or in a container of docker, enroot or apptainer."""

from toolkit.machine.cores import cores_near
from toolkit.runtime.needs import Needs, Part, Wrapped
from toolkit.runtime.require import require_backend, require_runtime
from toolkit.runtime.script import script
from toolkit.runtime.wrap import end_by_force, not_started, wrap

__all__ = [
    "Needs",
    "Part",
    "Wrapped",
    "cores_near",
    "end_by_force",
    "not_started",
    "require_backend",
    "require_runtime",
    "script",
    "wrap",
]
