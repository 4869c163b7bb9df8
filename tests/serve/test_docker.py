"""`toolkit serve` with `runtime: docker`, in containers of a real daemon.

The image is nearly empty, as no registry is asked: the container sees this machine's /usr.
"""

import io
import secrets
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.serve.conftest import write_engine_and_repository
from tests.serve.stream import Stream
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.serve import stop

pytest.importorskip("pytriton", reason="needs the extra rehearsal")
LINKS = [name for name in ("bin", "lib", "lib64") if Path("/", name).is_symlink()]
OPTIONS = ["--mount", "type=bind,source=/usr,target=/usr,readonly"]
ODD = 'it\'s "my", döck'


def docker(*arguments: str, **options) -> str:
    ran = subprocess.run(["docker", *arguments], capture_output=True, timeout=60, **options)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode().strip()


def _why_not() -> str:
    if shutil.which("docker") is None:
        return "needs docker: apt-get install docker.io"
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "needs docker's daemon, which does not answer: systemctl start docker"
    return "" if "bin" in LINKS else "needs a machine whose /bin is in /usr"


MISSING = _why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture
def image() -> Iterator[str]:
    """An image with empty folders, and links into /usr."""
    name, content = f"toolkit-test:{secrets.token_hex(4)}", io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for folder in ("tmp", "usr", "proc", "dev", "sys", "etc", "sbin"):  # docker puts its init into /sbin
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        for link in LINKS:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, str(Path("/", link).readlink())
            archive.addfile(entry)
    docker("import", "-", name, input=content.getvalue())
    yield name
    docker("image", "rm", "--force", name)


@pytest.fixture
def deployment(deploy: Callable[..., Deployment], image: str, tmp_path: Path) -> Iterator[Deployment]:
    """Two ranks, with an output whose path means something to a shell, to CSV and to ASCII."""
    file = deploy(tp=2).file
    content = yaml.safe_load(file.read_text())
    content |= {"output": str(tmp_path / ODD), "name": f"t{secrets.token_hex(4)}"}
    content["runtime"] = {"kind": "docker", "image": image, "options": OPTIONS}
    file.write_text(yaml.safe_dump(content))
    made = load_deployment(file)
    write_engine_and_repository(made)
    yield made
    for name in containers(made):
        docker("rm", "--force", name)


def containers(deployment: Deployment) -> list[str]:
    """Those of the deployment, also if they have ended."""
    return docker("ps", "--all", "--filter", f"name={deployment.name}", "--format", "{{.Names}}").split()


def test_served_asked_and_drained(deployment, start):
    serving = start(deployment).wait_ready(120)
    name = f"toolkit-{deployment.name}-serve"
    assert containers(deployment) == [name]
    inside = docker("top", name, "-o", "pid").split()
    assert {str(serving.member(rank).pid) for rank in (0, 1)} <= {*inside}
    stream = Stream(deployment, tokens=15)
    serving.wait_for(lambda: len(stream.received) >= 2)
    serving.send(signal.SIGTERM)
    assert serving.ended(60) == 0
    stream.join(30)
    assert stream.received == [f"{number} " for number in range(15)]
    assert "stopped: 1 request finished, none cut" in serving.stderr
    assert containers(deployment) == serving.left() == []


def test_no_container_is_left_after_a_kill_or_toolkit_stop(deployment, start):
    killed = start(deployment).wait_ready(120)
    killed.send(signal.SIGKILL)
    killed.ended(60)
    eventually(lambda: not containers(deployment) and not killed.left(), 60)
    by_docker = start(deployment).wait_ready(120)
    docker("kill", f"toolkit-{deployment.name}-serve")
    assert by_docker.ended(60) == 1
    assert "all 2 ranks were ended" in by_docker.stderr
    assert containers(deployment) == by_docker.left() == []
    stopped = start(deployment).wait_ready(120)
    stop(deployment)
    assert stopped.ended(60) == 0
    assert containers(deployment) == stopped.left() == []
