import functools
import gc
import multiprocessing.process
import os
import re
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
SMOLLM2 = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
NOT_INHERITED = (
    *("LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("GITHUB_STEP_SUMMARY", "OPENAI_API_KEY", "CUDA_VISIBLE_DEVICES"),
)
"""What the toolkit or a library reads of the shell that starts the tests."""
EXPENSIVE = ("flagship_compared", "plans", "smollm2")
"""Fixtures of a session that take seconds."""
LONGEST = (
    *(
        "up/test_up.py",
        "install/test_wheel.py",
        "drill/test_real.py",
        "up/test_nodes.py",
        "e2e/test_ends.py",
        "8 ranks]",
        "up/test_apply.py",
        "up/test_migrate_apply.py",
    ),
    *(
        "serve/test_serve.py",
        "serve/test_broken_groups.py",
        "load/test_loadtest.py",
        "load/test_web_ui.py",
        "up/test_fallback.py",
        "serve/test_hostile_paths.py",
    ),
    *("e2e/test_replicas.py", "model/test_sample_smollm2.py", "serve/test_pytorch.py", "calibrate/test_service.py"),
    "repository/test_serving.py",
)
"""What takes longest with servers begins first, so that no process is left alone with it at the end."""
SEVERAL_REPLICAS = (
    *("up/test_up.py", "up/test_nodes.py", "up/test_fallback.py", "up/test_llm_api.py", "up/test_admission_control.py"),
    "drill/test_real.py",
)
"""Their load is too much for two of them at once on two cores: one process has them all, with `--dist loadfile`."""
LONGEST_FOLDER = 60
"""Characters. In a folder of its own there multiprocessing makes a socket, whose path may have 107."""


@pytest.hookimpl(trylast=True)  # when pytest has its own output
def pytest_configure(config: pytest.Config) -> None:
    """Give each run the same surroundings, whatever terminal, user and network it is started from.

    Tables are so wide that no line wraps, however long the temporary paths are: a test of the layout sets COLUMNS.
    """
    if config.getoption("dist", "no") == "loadgroup" and not hasattr(pytest.Item, "_nodeid"):  # which xdist writes to
        raise pytest.UsageError(
            f"pytest-xdist does not group tests under pytest {pytest.__version__}: see pyproject.toml"
        )
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        reporter._tw.fullwidth = reporter._tw.fullwidth  # pytest's own lines stay as wide as they are
    for name in (*NOT_INHERITED, *(name for name in os.environ if name.startswith("TOOLKIT_"))):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "1000"
    # Several processes test at once. Each one's threads would spin for the others' cores: three times the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for number in (signal.SIGINT, signal.SIGHUP):  # which a shell makes its background jobs ignore, and nohup
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if len(tempfile.gettempdir()) > LONGEST_FOLDER:
        multiprocessing.process.current_process()._config["tempdir"] = tempfile.mkdtemp(dir="/tmp")
    for name in ("no_proxy", "NO_PROXY"):  # the servers of the tests are on this machine
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing of what is imported is garbage, so nothing looks for it, then or later: a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file whose tests are all left out by -m "not slow" is not imported: that takes seconds in each process."""
    left_out = re.findall(r"not (\w+)", config.option.markexpr)
    if not left_out or collection_path.suffix != ".py":
        return None
    mark = re.search(r"^pytestmark = \[?\s*pytest\.mark\.(\w+)", _text(collection_path), re.MULTILINE)
    return True if mark and mark[1] in left_out else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """With `--dist loadfile` a process has all tests of a file, and all of tests/e2e that ask a group of one size."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            size = re.search(r"\d+ ranks?\]$", nodeid)  # see tests/e2e/marks.py
            file = super()._split_scope(nodeid)
            return size[0] if size else "several replicas" if file.endswith(SEVERAL_REPLICAS) else file

    return ByServer(config, log)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` tests that share what takes long to make are run by one process, which makes it once."""
    for item in items:
        fixtures: dict[str, Any] = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
        shared = [name for name in EXPENSIVE if name in fixtures]
        shared += [item.nodeid.split("::")[0] for found in fixtures.values() if found[-1].scope == "module"]
        if shared:
            item.add_marker(pytest.mark.xdist_group(shared[0]))
        if "flagship_compared" in fixtures:
            item.add_marker(pytest.mark.thorough)
        for mark in ("slow", "alone"):
            if item.get_closest_marker(mark) and f"mark.{mark}" not in _text(item.path):
                raise pytest.UsageError(f"{item.nodeid}: make test would not find it; write pytest.mark.{mark} there")
    items.sort(key=lambda item: next((n for n, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


@functools.cache
def _text(file: Path) -> str:
    return file.read_text()


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """The Hugging Face directory of a small model that recites fixtures/tiny_llama.txt."""
    return FIXTURES / "tiny-llama"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """The directory of SmolLM2-135M-Instruct: that of `make test` if it is there, else a new one (7 s, 290 MB)."""
    from toolkit.model import sample_smollm2 as smollm2

    directory = SMOLLM2 if SMOLLM2.is_dir() else tmp_path_factory.mktemp("models") / "smollm2"
    smollm2.write(directory)
    return directory
