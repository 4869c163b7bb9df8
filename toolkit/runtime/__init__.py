"""Where it runs: the vendor's programs on this machine, or in a container of docker, enroot or apptainer."""

from toolkit.runtime.cores import cores_near
from toolkit.runtime.needs import Needs, Wrapped
from toolkit.runtime.require import require_backend, require_runtime
from toolkit.runtime.script import script
from toolkit.runtime.wrap import end_by_force, wrap

__all__ = ["Needs", "Wrapped", "cores_near", "end_by_force", "require_backend", "require_runtime", "script", "wrap"]
