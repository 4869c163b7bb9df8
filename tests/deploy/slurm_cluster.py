"""A real Slurm of two nodes, each a network namespace with an address, processes and a host name of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.up.namespaces import HUB, Network, address, kill_group, missing

PROGRAMS = tuple(
    (program, package)
    for package, programs in {
        "slurmctld": ("slurmctld",),
        "slurmd": ("slurmd",),
        "slurm-client": ("sbatch", "srun", "scontrol", "squeue"),
        "munge": ("munged",),
        "util-linux": ("unshare", "nsenter"),
    }.items()
    for program in programs
)
CONTROLLER_PORT, NODE_PORT = 6817, 6818
NODES = (1, 2)
CONF = """
ClusterName=tests
SlurmctldHost=hub({hub})
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MailProg=/bin/true
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
MpiDefault=none
SchedulerParameters=bf_interval=1,sched_min_interval=1
KillWait=30
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def missing_slurm() -> str:
    """What keeps this machine from having such a cluster, and what to do; "" if nothing does."""
    return missing(PROGRAMS)


class Slurm:
    """The cluster. What `bin` holds comes first on every PATH in it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.bin = folder / "bin"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("bin", "state", "tmp", *(f"spool.node{number}" for number in NODES)):
            (folder / name).mkdir()
        nodes = "\n".join(
            f"NodeName=node{number} NodeAddr={address(number)} CPUs=16 RealMemory=8000 State=UNKNOWN"
            for number in NODES
        )
        names = ",".join(f"node{number}" for number in NODES)
        values = {"hub": HUB, "controller": CONTROLLER_PORT, "node": NODE_PORT, "nodes": nodes, "names": names}
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, **values))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = "".join(f"{address(number)} node{number}\n" for number in NODES)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{HUB} hub\n{hosts}")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)

    @property
    def environment(self) -> dict[str, str]:
        """Of everything in it. A job gets that of its sbatch."""
        path = f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        return {
            "PATH": path,
            "HOME": str(self.folder),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "USER": "root",
            "TMPDIR": str(self.folder / "tmp"),
        }

    def program(self, name: str, text: str) -> Path:
        """Put a program first on every PATH."""
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)
        return self.bin / name

    def running(self, number: int) -> list[str]:
        """The names of what runs on a node."""
        command = ["ip", "netns", "pids", self.network.name(number)]
        pids = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        files = (Path(f"/proc/{pid}/comm") for pid in pids)
        return [file.read_text().strip() for file in files if file.exists()]

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle."""
        munge = [
            "--foreground",
            "--force",
            f"--key-file={self.folder}/munge.key",
            f"--socket={self.folder}/munge.socket",
        ]
        munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", "hub", "munged", *munge, "--num-threads=2")
        wait_for(lambda: (self.folder / "munge.socket").exists(), self.logs)
        self._daemon("slurmctld", "hub", "slurmctld", "-D")
        for number in NODES:
            self.boot(number)
        wait_for(lambda: self.run("sinfo", "--noheader", "--format=%t %D").split() == ["idle", "2"], self.logs)

    def boot(self, number: int) -> None:
        """Start a node: with its slurmd all of its processes end."""
        self._daemon(f"node{number}", number, "slurmd", "-D", "-N", f"node{number}")

    def _daemon(self, name: str, place: int | str, *command: str) -> None:
        setup = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name if place != 'hub' else place}"
        own = ("--pid", "--fork", "--kill-child", "--mount-proc") if isinstance(place, int) else ()
        if own:
            # slurmd does not start without control groups, and uses none here: `ip netns exec` has hidden them.
            setup += " && mount -t tmpfs cgroup /sys/fs/cgroup && mkdir /sys/fs/cgroup/systemd"
            setup += f" && mount -t tmpfs shm /dev/shm && mount -t tmpfs tmp {self.folder}/tmp"
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        full = ["env", "-i", *variables, "unshare", "--mount", "--uts", *own, "sh", "-c"]
        log = self.folder / f"{name}.out"
        self._processes[name] = self.network.start(place, [*full, f"{setup} && exec {shlex.join(command)}"], log)

    def run(self, *command: str, check: bool = True, **variables: str) -> str:
        """What a command of Slurm prints, as on a log-in node."""
        full = ["ip", "netns", "exec", self.network.name("hub"), "unshare", "--mount", "--uts", "sh", "-c"]
        full.append(f"mount --bind {self.folder}/hosts /etc/hosts && hostname hub && exec {shlex.join(command)}")
        environment = {**self.environment, **variables}
        done = subprocess.run(full, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not check, f"{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def state(self, job: str) -> str:
        """Of a job, as PENDING, RUNNING or COMPLETED."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        words = dict(word.partition("=")[::2] for word in self.run("scontrol", "show", "job", job).split())
        return words.get(name, "")

    def lose(self, number: int) -> None:
        """All processes of a node are gone, its slurmd too."""
        kill_group(self._processes[f"node{number}"])

    def logs(self) -> str:
        """The ends of all logs, for a test that fails."""
        texts = {
            path.name: path.read_text(errors="replace")[-1500:]
            for path in sorted(self.folder.glob("*.*"))
            if path.suffix in (".log", ".out")
        }
        return "".join(f"\n== {name}\n{text}" for name, text in texts.items() if text)

    def end(self) -> None:
        for process in self._processes.values():
            kill_group(process)


def wait_for(condition, logs, limit_s: float = 20) -> None:
    """Wait until it holds; fail with the logs if it does not."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, logs()
        time.sleep(0.2)
