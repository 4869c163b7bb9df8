"""What each supported release of TensorRT-LLM takes: flags of trtllm-build, parameters of the models, containers.

The facts are text tables, one file a kind; docs/contracts.md says where they are from and which are not confirmed.
"""

from toolkit.releases.images import Image
from toolkit.releases.models import (
    OUR_LLMAPI_BLS_PARAMETERS,
    OUR_PARAMETERS,
    OUR_REHEARSAL_PARAMETERS,
    TRITONS_PARAMETERS,
)
from toolkit.releases.parameters import RENAMES
from toolkit.releases.release import LATEST, RELEASES, WITHOUT_ENGINES, Release, release_of
from toolkit.releases.setting import Flag, Parameter

__all__ = [
    "LATEST",
    "OUR_LLMAPI_BLS_PARAMETERS",
    "OUR_PARAMETERS",
    "OUR_REHEARSAL_PARAMETERS",
    "RELEASES",
    "RENAMES",
    "TRITONS_PARAMETERS",
    "WITHOUT_ENGINES",
    "Flag",
    "Image",
    "Parameter",
    "Release",
    "release_of",
]
