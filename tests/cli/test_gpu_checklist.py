"""The GPU checklist, in its three pages: every command of it can be typed as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.commands import toolkit
from toolkit.cli.main import COMMANDS, cli
from toolkit.config.load import load_deployment
from toolkit.plan.what_if import load_changed
from toolkit.runtime.images import image
from toolkit.sizing.host import plan_host, rank_bytes

ROOT = Path(__file__).parents[2]
PAGES = ("gpu-checklist", "gpu-checklist-serve", "gpu-checklist-up")
PAGE = "".join((ROOT / f"docs/how-to/{name}.md").read_text() for name in PAGES)
PLANNED = {"migrate"} - set(COMMANDS)
"""Not in this release yet."""


def typed() -> Iterator[tuple[str, ...]]:
    """The arguments of each `toolkit` command of the page, with what the shell puts in the place of $C."""
    variables: dict[str, str] = {}
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            if match := re.fullmatch(r"([A-Z])=(\S+)", line):
                variables[match[1]] = match[2]
            line = re.sub(r"\$([A-Z])\b", lambda name: variables[name[1]], line)
            if line.startswith("toolkit "):
                yield tuple(word for word in shlex.split(line.partition(" > ")[0])[1:])


def test_all_stages_are_on_the_page() -> None:
    """All but what begins a YAML, and what operates a deployment after that day."""
    used = [arguments[0] for arguments in typed()]
    assert set(used) >= {*COMMANDS} - {"init", "sample", "known-truth", "deploy", "tune"}
    assert used.index("convert") < used.index("verify") < used.index("build") < used.index("serve") < used.index("stop")


@pytest.mark.parametrize("arguments", sorted(set(typed())), ids=" ".join)
def test_the_command_its_options_and_its_yaml_exist(arguments: tuple[str, ...]) -> None:
    if arguments[0] in PLANNED:
        pytest.skip("not in this release yet")
    if arguments == ("--version",):
        return
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None, arguments[0]
    parameters = command.make_context(arguments[0], list(arguments[1:])).params  # as when it is typed, but nothing runs
    if config := parameters.get("config"):
        assert (ROOT / config).is_file() or str(config).endswith("-pytorch.yaml"), config


@pytest.mark.parametrize("settings", [used for used in sorted(set(typed())) if "--what-if" in used], ids=" ".join)
def test_what_it_plans_can_be_planned(settings: tuple[str, ...]) -> None:
    load_changed(ROOT / settings[1], settings=[setting for setting in settings if "=" in setting])


@pytest.mark.slow
def test_predictions_are_those_of_the_plan() -> None:
    """The table of step 5, which measurements of that day are compared with."""
    (command,) = {used for used in typed() if "--what-if" in used}
    printed = [
        toolkit("plan", f"build_configs/llama3-70b-h100-{name}-fp16.yaml", *command[2:]).stdout
        for name in ("pp4tp2", "tp8", "2xtp4")
    ]
    rates = [re.search(r"^Requests/s +≥ 8 +(\d+)", plan, re.MULTILINE)[1] for plan in printed]
    assert f"| Requests/s | {' | '.join(rates)} |" in PAGE
    for metric in ("TTFT", "TPOT"):
        rows = [re.search(rf"^{metric} .*", plan, re.MULTILINE)[0] for plan in printed]
        figures = [re.findall(r"(?<= )[\d,]+(?= |$)", re.sub(r"\(.*?\)", "", row)) for row in rows]
        assert f"| {metric} P50 / P99, ms | {' | '.join(f'{p50} / {p99}' for p50, _, p99 in figures)} |" in PAGE


def test_paths_follow_from_the_yamls() -> None:
    flagship = load_deployment(ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml")
    assert set(re.findall(r"work/[a-z0-9-]*[a-z0-9]", PAGE)) == {str(flagship.output.relative_to(ROOT))}
    assert str(flagship.model.path) in PAGE and set(re.findall(r"nvcr\.io/\S+", PAGE)) == {image(flagship)}


def test_sizes_are_those_of_the_plan() -> None:
    """The table of bytes, from which the predicted times are computed."""
    layouts = [
        load_deployment(ROOT / f"build_configs/llama3-70b-h100-{name}-fp16.yaml") for name in ("pp4tp2", "tp8", "2xtp4")
    ]
    plans = [plan_host(layout) for layout in layouts]
    ranks = [rank_bytes(layout) for layout in layouts]
    for row in (
        [f"{plan.checkpoint_bytes / 1e9:.1f} GB" for plan in plans],
        [f"{max(sizes) / 1e9:.1f} GB" for sizes in ranks],
        [f"{plan.workers} of {len(sizes)}" for plan, sizes in zip(plans, ranks, strict=True)],
    ):
        assert f"| {' | '.join(row)} |" in PAGE
