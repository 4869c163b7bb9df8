"""The private parts of Locust are still there; test_loadtest.py shows the page and lost workers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.versions import untried
from toolkit.load import private_locust

LOCUST = Path(find_spec("locust").origin).parent  # not imported: that would patch this process for gevent
PAGE = LOCUST / "webui" / "dist" / "assets"
REPLACED = "toolkit/load/private_locust.py has nothing to stand on: read its first lines for what replaces it."


def test_this_release_of_locust_was_tried():
    assert not (said := untried("locust", private_locust)), said


@pytest.mark.parametrize(
    "part", ["tablist", "MuiContainer", "extendedTabs", "extendedCsvFiles", "localStorage.theme", "templateArgs"]
)
def test_the_page_still_has_the_part(part):
    scripts = "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("*.js"))
    assert part in scripts, f"Locust's page has no {part} any more: {REPLACED}"


def test_the_endpoints_still_have_their_names():
    source = (LOCUST / "web.py").read_text(encoding="utf-8")
    for endpoint in (private_locust.INDEX, private_locust.SWARM):
        blueprint, _, view = endpoint.partition(".")
        assert f'Blueprint("{blueprint}"' in source and f"def {view}(" in source, (
            f"Locust's page has no endpoint {endpoint} any more: {REPLACED}"
        )


def test_the_master_still_lists_its_workers():
    source = (LOCUST / "runners.py").read_text(encoding="utf-8")
    for part in ("class WorkerNodes", "def ready", "def missing", "def all", "self.cpu_usage"):
        assert part in source, f"Locust's runners have no {part!r} any more: {REPLACED}"
