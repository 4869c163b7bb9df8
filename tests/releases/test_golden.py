"""The whole contract of each release, listed, so that a change of a table is seen in review.

After a change that is meant:  python tests/releases/test_golden.py
"""

from pathlib import Path

import pytest

from toolkit.releases import RELEASES, RENAMES, Release
from toolkit.releases.setting import Setting

GOLDEN = Path(__file__).parent / "golden"


def listing(release: Release) -> str:
    lines = [f"release {release.name}: {', '.join(release.versions)}", "", "images"]
    for image in release.images:
        lines.append(
            f"  {image.tag}: TensorRT-LLM {image.version}, TensorRT {image.tensorrt}, CUDA {image.cuda}, "
            f"driver {image.driver}, Python {image.python}"
        )
    lines += ["", "flags of trtllm-build", *map(line, release.build_flags.values())]
    lines += ["", "parameters of the backend", *map(line, release.backend_parameters.values())]
    lines += ["", "not flags", *(f"  {name}: {why}" for name, why in release.removed_flags.items())]
    lines += ["", "renamed", *(f"  {old}: {new} since {since}" for old, (new, since) in RENAMES.items())]
    return "\n".join(lines) + "\n"


def line(setting: Setting) -> str:
    """As `  tokens_per_block: int 1..inf, default 32 (of the KV cache)`."""
    text = f"  {setting.name}: {setting.kind}"
    if setting.kind in ("int", "float"):
        text += f" {setting.low}..{setting.high}"
    if setting.choices:
        text += f" {'|'.join(setting.choices)}"
    if getattr(setting, "required", False):
        text += ", required"
    if setting.default is not None:
        text += f", default {setting.default}"
    return f"{text} ({setting.note})" if setting.note else text


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_contract(release: Release) -> None:
    assert listing(release) == (GOLDEN / f"{release.name}.txt").read_text()


if __name__ == "__main__":
    for each in RELEASES.values():
        (GOLDEN / f"{each.name}.txt").write_text(listing(each))
