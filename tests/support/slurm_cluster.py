"""A SLURM cluster of two nodes on this machine: a real controller, and a real slurmd for each node.

Each node, and the controller, has a network, a host name and mounts of its own (Linux namespaces), so that a job on two
nodes runs as on two machines that share their file system. All files are below one temporary folder, and nothing under
/etc is touched. Root only.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.machine import require

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2"
NODES = {"ctl": "10.66.0.1", "node1": "10.66.0.11", "node2": "10.66.0.12"}

# What jobs of the scripts in slurm/ are given here: a small part of a node, and this Python.
OPTIONS = ("--gpus-per-node=1", "--cpus-per-task=1")
ENVIRONMENT = {
    "ACTIVATE": f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={Path(__file__).parents[2]}",
    "OMP_NUM_THREADS": "1",
}

CONFIG = """
ClusterName=tests
SlurmctldHost=ctl(10.66.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# How long a requeued job stays in the queue at least depends on how long a credential is valid: two minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# A pre-empted job gets the signal of `sbatch --signal`.
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
SlurmdTimeout=30
GresTypes=gpu
NodeName=node[1-2] NodeAddr=10.66.0.[11-12] CPUs=2 RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=batch Nodes=node[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def require_slurm() -> None:
    """Skip, or fail where CI is set, on a machine that cannot run the cluster."""
    require(PROGRAMS, INSTALL, root=True)


class Cluster:
    """A running cluster; `with Cluster(folder) as cluster:`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = f"cmgems-{uuid.uuid4().hex[:6]}"
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._pid_files: list[Path] = []

    def __enter__(self) -> "Cluster":
        try:
            self._connect()
            self._configure()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """Run a command, such as sbatch or squeue, on the controller's machine; returns its output."""
        finished = subprocess.run(
            [*self.inside("ctl"), *map(str, command)],
            cwd=cwd,
            env={**self._environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"
        return finished.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says about a job: JobState, Restarts, ExitCode and so on."""
        words = self.run("scontrol", "show", "job", number, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """What SLURM says about a job when it is in one of the states."""
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < end, f"job {number} is {job['JobState']}, not {' or '.join(states)}"
            time.sleep(0.2)
        return job

    @staticmethod
    def wait_for_files(folder: Path, pattern: str, seconds: float = 180) -> list[Path]:
        """Files of a folder, as soon as there are any."""
        end = time.monotonic() + seconds
        while not (found := sorted(folder.glob(pattern))):
            assert time.monotonic() < end, f"no {pattern} in {folder}"
            time.sleep(0.2)
        return found

    def processes(self, number: str, rank: int) -> list[psutil.Process]:
        """Processes of a rank of a job."""
        return [p for p in psutil.process_iter() if self._is_rank(p, number, rank)]

    @staticmethod
    def _is_rank(process: psutil.Process, number: str, rank: int) -> bool:
        with suppress(psutil.Error):
            environment = process.environ()
            return environment.get("SLURM_JOB_ID") == number and environment.get("RANK") == str(rank)
        return False

    def _connect(self) -> None:
        """A network of the three machines, on a bridge of the controller's."""
        for name in NODES:
            _ip("netns", "add", self._namespace(name))
            _ip("-n", self._namespace(name), "link", "set", "lo", "up")
        controller = self._namespace("ctl")
        _ip("-n", controller, "link", "add", "bridge", "type", "bridge")
        _ip("-n", controller, "addr", "add", f"{NODES['ctl']}/24", "dev", "bridge")
        _ip("-n", controller, "link", "set", "bridge", "up")
        for name in ("node1", "node2"):
            node = self._namespace(name)
            _ip("-n", controller, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", node)
            _ip("-n", controller, "link", "set", name, "master", "bridge", "up")
            _ip("-n", node, "addr", "add", f"{NODES[name]}/24", "dev", "eth0")
            _ip("-n", node, "link", "set", "eth0", "up")

    def _configure(self) -> None:
        for name in ("state", "spool/node1", "spool/node2", "munge"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o755)
        (self.folder / "hosts").write_text(
            # A node's interface for MPI and the like often has a name of its own.
            "".join(f"{address} {name} {name}-ib\n" for name, address in [("localhost", "127.0.0.1"), *NODES.items()])
        )
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder))
        (self.folder / "plugstack.conf").touch()
        # A GPU is to SLURM a device file; this one does nothing.
        gpu = self.folder / "gpu"
        os.mknod(gpu, 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={gpu}\n")
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _start(self) -> None:
        munge = self.folder / "munge"
        options = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        # The folder above may be anyone's to write, as /tmp is: that is what --force is for.
        self._daemon(munge / "pid", ["munged", "--force", f"--socket={munge / 'socket'}", *options])
        configuration = str(self.folder / "slurm.conf")
        self._daemon(self.folder / "slurmctld.pid", [*self.inside("ctl"), "slurmctld", "-f", configuration])
        self._until(lambda: "UP" in self.run("scontrol", "ping"), "the controller does not answer")
        for name in ("node1", "node2"):
            self.start_node(name)
        self._until(self.is_idle, "the nodes do not come up")

    def start_node(self, name: str) -> None:
        """Start slurmd on a node, at first or after a crash."""
        configuration = str(self.folder / "slurm.conf")
        self._daemon(self.folder / f"slurmd.{name}.pid", [*self.inside(name), "slurmd", "-f", configuration])

    def crash(self, name: str) -> None:
        """End all processes of a node at once."""
        for number in self._processes_of(name):
            os.kill(number, signal.SIGKILL)

    def _processes_of(self, name: str) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self._namespace(name)], capture_output=True, text=True)
        return [int(number) for number in listed.stdout.split()]

    def is_idle(self) -> bool:
        """Whether no node is down or at work."""
        return self.run("sinfo", "-h", "-N", "-p", "batch", "-o", "%t").split() == ["idle", "idle"]

    def _daemon(self, pid_file: Path, command: list[str]) -> None:
        """Start a program that goes into the background and writes its process id into a file."""
        self._pid_files.insert(0, pid_file)
        subprocess.run(command, check=True, env=self._environment, timeout=30, stdout=subprocess.DEVNULL)

    def _until(self, condition, problem: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not _holds(condition):
            logs = "".join(f"\n{path}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
            assert time.monotonic() < end, problem + logs
            time.sleep(0.1)

    def stop(self) -> None:
        """End all jobs, daemons and networks."""
        if self._pid_files:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                self.run("scancel", "--user=root")
                self._until(self.is_idle, "jobs do not end", 15)
        for file in self._pid_files:
            with suppress(FileNotFoundError, ValueError, psutil.Error):
                daemon = psutil.Process(int(file.read_text()))
                daemon.terminate()
                daemon.wait(10)
        for name in NODES:
            for number in self._processes_of(name):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", self._namespace(name)], capture_output=True)

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def inside(self, name: str) -> list[str]:
        """What a command has in front of it to run on one of the machines."""
        # Not `ip netns exec`, which mounts another /sys, where slurmd does not find the control groups.
        network = ["nsenter", f"--net=/run/netns/{self._namespace(name)}"]
        own = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'
        mounts = ["unshare", "--mount", "--uts", "--propagation", "private"]
        return [*network, *mounts, "sh", "-c", own, "sh", name, str(self.folder / "hosts")]


def _holds(condition) -> bool:
    with suppress(AssertionError):
        return condition()
    return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
