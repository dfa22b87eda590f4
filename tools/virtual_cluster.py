"""A real Slurm of three virtual hosts on this machine, for tests and for measurements over a network of known speed.

  sudo python tools/virtual_cluster.py                  a shell in which sbatch and srun work; exit ends the cluster
  sudo python tools/virtual_cluster.py --rate 1gbit     the same, each host's network slowed

Each host has its own network, host name, /dev/shm and /sys/devices/system/cpu, so that Slurm, hwloc, lscpu and
Widefield all see the same thing:
  duo          2 sockets of one core each (CPUs 0 and 1)       partition sockets
  uno1, uno2   one core each (CPU 0, CPU 1)                    partition hosts
  duo + uno1   hosts of unequal shape                          partition mixed
Both cores belong to duo and to uno1 and uno2, so only one of the partitions should work at a time. Needs root and
Debian's slurm-wlm, munge, libpmix-dev, iproute2 and util-linux (`make test-slurm` installs them).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip", "tc", "nsenter", "unshare", "taskset", "lscpu")
LIBRARIES = Path("/usr/lib")
NETWORK, BRIDGE = "10.77.0", "widefield-br"
PREFIX = "/var/tmp/widefield-slurm-"
"""Begins the folder of every cluster."""


@dataclass(frozen=True)
class Host:
    name: str
    number: int
    cpus: tuple[int, ...]
    """One socket each."""

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"widefield-{self.name}"


HOSTS = (Host("duo", 1, (0, 1)), Host("uno1", 2, (0,)), Host("uno2", 3, (1,)))
PARTITIONS = {"hosts": "uno1,uno2", "sockets": "duo", "mixed": "duo,uno1"}


def why_not() -> str | None:
    """What keeps a cluster from starting here; None where nothing does."""
    if os.geteuid() != 0:
        return "it needs root: network namespaces and mounts"
    missing = [p for p in PROGRAMS if not shutil.which(p)]
    missing += [] if pmix_library() else ["libpmix.so"]
    if missing:
        return f"{', '.join(missing)} missing: apt install slurm-wlm munge libpmix-dev iproute2"
    if not {0, 1} <= os.sched_getaffinity(0):
        return "it needs CPUs 0 and 1"
    return None


def pmix_library() -> Path | None:
    """What Slurm's plugin loads; Debian has it in the -dev package only."""
    return next(LIBRARIES.glob("*/libpmix.so"), None)


class Cluster:
    """The cluster while its `with` block lasts. `folder` is visible on all hosts."""

    def __init__(self, rate: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=Path(PREFIX).name, dir=Path(PREFIX).parent))
        self._rate = rate
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(143)
        )  # so that a cluster that is ended ends as one that is done
        try:
            _end_processes(PREFIX)
            _forget_network()
            self._start_munge()
            self._write_settings()
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            for host in HOSTS:
                _connect(host)
                self._start_host(host)
            self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
            if self._rate:
                self.limit(self._rate)
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root", timeout_s=10)
            time.sleep(1)
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        _end_processes(str(self.folder))  # steps that have outlived their slurmd
        _forget_network()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """In which sbatch, srun and squeue speak to this cluster."""
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {**os.environ, **root, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(
        self, *command: str, timeout_s: float = 60, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """A command on the "login node", with a time limit."""
        return subprocess.run(
            command,
            env={**self.environment, **environ},
            cwd=cwd,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )

    def limit(self, rate: str | None) -> None:
        """Let every host send at most at `rate` (`1gbit`, `100mbit`); None: as fast as memory."""
        for host in HOSTS:
            inside = ("nsenter", f"--net=/run/netns/{host.namespace}", "tc", "qdisc")
            subprocess.run([*inside, "del", "dev", "eth0", "root"], stderr=subprocess.DEVNULL, check=False)
            if rate:
                _run(*inside, "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms")

    def _spawn(self, name: str, *command: str, environ: Mapping[str, str] | None = None) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            env = {**self.environment, **(environ or {})}
            self._processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd="/"))

    def _start_munge(self) -> None:
        (self.folder / "log").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        paths = [f"--{option}={self.folder / name}" for option, name in {**files, "log-file": "log/munge"}.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *paths)

    def _write_settings(self) -> None:
        """One slurm.conf for all, and one for each host: a host of one core has nothing to bind to."""
        (self.folder / "state").mkdir()
        login = socket.gethostname().split(".")[0]
        lines = _SETTINGS.format(folder=self.folder, login=f"{login}({NETWORK}.254)").strip().splitlines()
        lines += [
            f"NodeName={h.name} NodeHostname={h.name} NodeAddr={h.address} Sockets={len(h.cpus)} CoresPerSocket=1 "
            "ThreadsPerCore=1 RealMemory=2000"
            for h in HOSTS
        ]
        default = {"hosts": " Default=YES"}
        lines += [f"PartitionName={p} Nodes={n} MaxTime=60{default.get(p, '')}" for p, n in PARTITIONS.items()]
        text = "\n".join(lines) + "\n"
        (self.folder / "slurm.conf").write_text(text)
        for host in HOSTS:
            plugin = "task/affinity" if len(host.cpus) > 1 else "task/none"
            (self.folder / f"slurm.{host.name}.conf").write_text(text.replace("task/affinity", plugin))
        hosts = [f"127.0.0.1 localhost\n{NETWORK}.254 {login}", *(f"{h.address} {h.name}" for h in HOSTS)]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def _start_host(self, host: Host) -> None:
        folder = self.folder / host.name
        write_sys(folder, host.cpus)
        for name in ("tmp", "spool"):
            (self.folder / f"{name}.{host.name}").mkdir()
        cpus = ",".join(map(str, host.cpus))
        script = f"""
            set -eu
            hostname {host.name}; mount --make-rprivate /
            mount --bind {self.folder}/hosts /etc/hosts; mount -t tmpfs tmpfs /dev/shm
            mount --bind {folder}/cpu /sys/devices/system/cpu; mount --bind {folder}/node /sys/devices/system/node
            exec taskset -c {cpus} slurmd -D -N {host.name} -f {self.folder}/slurm.{host.name}.conf"""
        namespaces = ("nsenter", f"--net=/run/netns/{host.namespace}", "unshare", "--uts", "--mount", "--ipc")
        environ = {"SLURM_CONF": str(self.folder / f"slurm.{host.name}.conf")}
        self._spawn(f"host.{host.name}", *namespaces, "bash", "-c", script, environ=environ)

    def _wait_until_idle(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            states = self.run(
                "sinfo", "--noheader", "--Node", "--partition=hosts,sockets", "--format=%T"
            ).stdout.split()
            if states == ["idle"] * len(HOSTS):
                return
            time.sleep(0.5)
        logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-800:]}" for p in (self.folder / "log").iterdir())
        raise RuntimeError(f"the virtual cluster did not come up: {states}\n{logs}")


_SETTINGS = """
ClusterName=widefield
SlurmctldHost={login}
SlurmUser=root
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
DebugFlags=NO_CONF_HASH
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SchedulerParameters=batch_sched_delay=0,sched_interval=1
"""


def write_sys(folder: Path, cpus: tuple[int, ...]) -> None:
    """What /sys/devices/system/cpu and node say on a host with one core in each socket."""
    listed = ",".join(map(str, cpus))
    texts = {f"cpu/{name}": listed for name in ("online", "possible", "present")} | {"cpu/offline": ""}
    for package, cpu in enumerate(cpus):
        mask, topology = f"{1 << cpu:x}", f"cpu/cpu{cpu}/topology"
        for level in ("core", "thread", "die", "package", "cluster"):
            texts |= {f"{topology}/{level}_cpus": mask, f"{topology}/{level}_cpus_list": str(cpu)}
        for level in ("core", "thread"):
            texts |= {f"{topology}/{level}_siblings": mask, f"{topology}/{level}_siblings_list": str(cpu)}
        texts |= {f"{topology}/core_id": "0", f"{topology}/die_id": "0", f"cpu/cpu{cpu}/online": "1"}
        texts[f"{topology}/physical_package_id"] = str(package)
    texts |= {f"node/{name}": "0" for name in ("online", "possible", "has_cpu", "has_memory", "has_normal_memory")}
    texts |= {"node/node0/cpulist": listed, "node/node0/cpumap": f"{sum(1 << c for c in cpus):x}"}
    meminfo = Path("/sys/devices/system/node/node0/meminfo")
    texts |= {"node/node0/distance": "10", "node/node0/meminfo": meminfo.read_text() if meminfo.exists() else ""}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n")


def _connect(host: Host) -> None:
    """A namespace with one cable to the bridge."""
    outer, inside = f"widefield-v{host.number}", ("nsenter", f"--net=/run/netns/{host.namespace}")
    _run("ip", "netns", "add", host.namespace)
    _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _run("ip", "link", "set", outer, "master", BRIDGE, "up")
    _run(*inside, "ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _run(*inside, "ip", "link", "set", device, "up")
    # Linux's default; with BBR, which some machines choose, both directions at once take up to twice as long
    _run(*inside, "ip", "route", "replace", f"{NETWORK}.0/24", "dev", "eth0", "src", host.address, "congctl", "cubic")


def _forget_network() -> None:
    """Also what a cluster that was killed has left."""
    cables = [("link", "del", f"widefield-v{h.number}") for h in HOSTS]
    for command in (*(("netns", "del", h.namespace) for h in HOSTS), *cables, ("link", "del", BRIDGE)):
        subprocess.run(["ip", *command], stderr=subprocess.DEVNULL, check=False)


def _end_processes(folder: str) -> None:
    """Kill what names a cluster's folder on its command line or in its environment, but for this process."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            names = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            if folder.encode() in names and int(path.name) != os.getpid():
                os.kill(int(path.name), signal.SIGKILL)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    """A shell on the cluster's login node."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", help="what each host may send, as tc writes it: 1gbit, 100mbit")
    parser.add_argument("command", nargs="*", help="instead of a shell")
    args = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(f"no cluster here: {reason}")
    with Cluster(args.rate) as cluster:
        sys.exit(subprocess.run(args.command or ["bash"], env=cluster.environment, check=False).returncode)


if __name__ == "__main__":
    main()
