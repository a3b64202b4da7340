"""Hosts with a Docker Engine: each has a network namespace, mounts, a `/run` and a name of its own.

A `DockerHost` is a `Host` of `tests.netns.world` that also runs containerd and dockerd. Both, the
pyvxlan daemon and every command run in the same namespaces, so that sockets below `/run` are
found as on a machine of its own. Everything is ended by process id: what runs in the host's mount
namespace or in its cgroup was started here and nowhere else.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any, TypeVar

from tests.netns.world import BIN, Host, World, command, eventually
from tests.servers.etcd import EtcdServer

ENGINE = Path(os.environ.get("TEST_ENGINE", "/usr/bin"))
"""Directory with docker, dockerd, docker-proxy: Debian's, or of `tests/servers/dockerd/build`."""
DOCKER = ENGINE / "docker"
IMAGE = "busybox"
CGROUPS = Path("/sys/fs/cgroup")
START_S = 40


class DockerHost(Host):
    """A host with an Engine."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.directory = world.directory / f"host{number}"
        self.cgroup = f"{world.name}h{number}"
        self.config: dict[str, Any] = {"storage-driver": "overlay2"}
        """What stands in daemon.json at the next start of the Engine, beside our `dns`."""
        self.holder: subprocess.Popen[bytes] | None = None
        self.containerd: subprocess.Popen[bytes] | None = None
        self.dockerd: subprocess.Popen[bytes] | None = None
        self.dockerd_log = self.directory / "dockerd.log"
        self.daemon_json = self.directory / "daemon.json"

    # Where things run

    def hold(self) -> None:
        """Makes the namespaces for mounts and for the host's name; a process keeps them."""
        script = (
            f"hostname h{self.number} && mount -t tmpfs -o mode=755 dk /run &&"
            " mkdir -p /run/docker/plugins /run/pyvxlan && touch /run/held && exec sleep infinity"
        )
        self.holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", "-mu", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually((self.root / "run" / "held").exists, what=f"mounts of {self.netns}")

    @property
    def root(self) -> Path:
        """The host's file system as the test sees it."""
        assert self.holder is not None
        return Path(f"/proc/{self.holder.pid}/root")

    def enter(self) -> list[str]:
        assert self.holder is not None
        return [
            "nsenter",
            f"--net=/run/netns/{self.netns}",
            f"--mount=/proc/{self.holder.pid}/ns/mnt",
            f"--uts=/proc/{self.holder.pid}/ns/uts",
            "--",
        ]

    def daemon_words(self) -> list[str]:
        return [*self.enter(), str(BIN / "pyvxlan-daemon")]

    def daemon_args(self, *extra: object) -> list[str]:
        return super().daemon_args("--plugin-socket", "/run/docker/plugins/pyvxlan.sock", *extra)

    def pyvxlan(self, *args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `pyvxlan` where the host's files are; what the daemon was told, it is told."""
        told = dict(itertools.pairwise(self.daemon_args()))
        given = {flag: told[flag] for flag in ("--run-dir", "--state-dir", "--plugin-socket")}
        words = [
            f"PYVXLAN_{flag.strip('-').replace('-', '_').upper()}={value}"
            for flag, value in given.items()
        ]
        return self.run("env", *words, BIN / "pyvxlan", *args, check=check)

    # The Engine

    def start_engine(self, *, wait: bool = True) -> None:
        """Starts containerd, unless it runs, and dockerd."""
        if self.containerd is None:
            self.containerd = self._spawn(
                "containerd",
                *("--root", self.directory / "containerd"),
                *("--state", "/run/containerd", "--address", "/run/containerd.sock"),
                log=self.directory / "containerd.log",
            )
            eventually((self.root / "run/containerd.sock").exists, within_s=START_S)
        daemon_json = self.daemon_json
        daemon_json.write_text(json.dumps(self.config))
        self.pyvxlan("docker", "setup", "--file", daemon_json)
        self.dockerd = self._spawn(
            *("env", f"PATH={ENGINE}:{os.environ['PATH']}", "dockerd"),
            *("--containerd", "/run/containerd.sock", "--data-root", self.directory / "docker"),
            *("--cgroup-parent", self.cgroup, "--config-file", daemon_json),
            log=self.dockerd_log,
        )
        if wait:
            self.wait_engine()

    def wait_engine(self) -> None:
        """Returns when the Engine answers."""

        def answers() -> bool:
            assert self.dockerd is not None
            if self.dockerd.poll() is not None:
                raise AssertionError(f"dockerd ended:\n{self.dockerd_log.read_text()[-3000:]}")
            with contextlib.suppress(OSError):
                return bool(self.api("GET", "/_ping"))
            return False

        eventually(answers, within_s=START_S, what=f"dockerd of {self.netns} answers")

    def stop_engine(self, how: signal.Signals = signal.SIGTERM, *, within_s: float = 30) -> None:
        """Ends dockerd alone; containerd and containers do what they do then."""
        assert self.dockerd is not None
        self.dockerd.send_signal(how)
        self.dockerd.wait(within_s)
        self.dockerd = None
        (self.root / "run/docker.pid").unlink(missing_ok=True)

    def _spawn(self, *words: object, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen(
                [*self.enter(), *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def import_image(self) -> None:
        """Gives the Engine an image made of busybox."""
        done = subprocess.run(
            [*self.enter(), DOCKER, "import", "-c", 'CMD ["sh"]', "-", IMAGE],
            input=busybox_image(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    # What is asked of it

    def docker(self, *args: object, timeout_s: float = 60) -> str:
        """Runs Docker's command line; fails if it fails. Gives stdout without the last newline."""
        done = self.docker_try(*args, timeout_s=timeout_s)
        return self.printed(done, f"docker {args}").rstrip("\n")

    def docker_try(self, *args: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs Docker's command line, whatever comes of it."""
        return self.run(DOCKER, *args, check=False, timeout_s=timeout_s)

    def docker_refused(self, *args: object) -> str:
        """Runs Docker's command line, which must refuse; gives what it says."""
        done = self.docker_try(*args)
        assert done.returncode != 0, f"docker {args} was accepted: {done.stdout}"
        return done.stderr.strip()

    def api(self, method: str, path: str, body: object = None) -> Any:
        """One call of the Engine's API; gives what its JSON says, or its text."""
        connection = UnixConnection(self.root / "run/docker.sock")
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 400:
            raise EngineError(answer.status, text)
        return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text

    def networks(self) -> dict[str, dict[str, Any]]:
        """The Engine's networks of our driver, by name; fails if a name is there twice."""
        found = [n for n in self.api("GET", "/networks") if n["Driver"] == "pyvxlan"]
        names = [n["Name"] for n in found]
        assert len(names) == len(set(names)), f"duplicates on {self.netns}: {sorted(names)}"
        return {n["Name"]: n for n in found}

    def pid_of(self, container: str) -> int:
        """The container's first process."""
        pid: int = self.api("GET", f"/containers/{container}/json")["State"]["Pid"]
        return pid

    def inside(
        self, container: str, *args: object, check: bool = True, timeout_s: float = 30
    ) -> str:
        """Runs a program of the machine in a container's network namespace."""
        words = ["nsenter", f"--net=/proc/{self.pid_of(container)}/ns/net", "--", *args]
        return command(*words, check=check, timeout_s=timeout_s).stdout

    # The end

    def close(self) -> None:
        for step in (
            self._remove_containers,
            super().close,
            self._end_processes,
            self._remove_cgroup,
        ):
            with contextlib.suppress(Exception):
                step()
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait(5)
        for process in (self.dockerd, self.containerd):
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)

    def _remove_containers(self) -> None:
        if self.dockerd is not None and self.dockerd.poll() is None:
            every = self.docker("ps", "-aq").split()
            if every:
                self.docker("rm", "-f", *every)
            self.stop_engine(within_s=15)

    def _end_processes(self) -> None:
        """Kills what is left in the host's mount namespace or cgroup, except the holder."""
        assert self.holder is not None
        mine = Path(f"/proc/{self.holder.pid}/ns/mnt").readlink()
        for _ in range(5):
            found = {pid for path in self._cgroups() for pid in _pids_of(path)}
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if entry.name.isdigit() and (entry / "ns/mnt").readlink() == mine:
                        found.add(int(entry.name))
            found -= {self.holder.pid}
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def _cgroups(self) -> list[Path]:
        tops = [CGROUPS / self.cgroup, *CGROUPS.glob(f"*/{self.cgroup}")]
        return [path for top in tops for path in (*top.glob("**/"), top) if path.is_dir()]

    def _remove_cgroup(self) -> None:
        for path in sorted(self._cgroups(), key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                path.rmdir()


class EngineError(AssertionError):
    """The Engine refused a call."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class UnixConnection(HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        # The path may be longer than a socket's address; the descriptor's is not.
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket(AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


class DockerWorld(World):
    """Hosts with Engines."""

    host_type = DockerHost
    hosts: list[DockerHost]  # type: ignore[assignment]

    def __getitem__(self, number: int) -> DockerHost:
        return self.hosts[number - 1]

    def start(self) -> None:
        """Starts the daemons, then the Engines, and imports the image."""
        for host in self.hosts:
            host.hold()
            host.start(wait=False)
        for host in self.hosts:
            host.wait()
            host.start_engine(wait=False)
        for host in self.hosts:
            host.wait_engine()
            host.import_image()


W = TypeVar("W", bound=DockerWorld)


@contextlib.contextmanager
def docker_world(
    name: str,
    hosts: int = 2,
    *daemon_options: object,
    start: bool = True,
    kind: type[W] = DockerWorld,  # type: ignore[assignment]
) -> Iterator[W]:
    """A world with Engines for the length of a `with`."""
    made = kind(f"{name}{os.getpid() % 10000}", hosts, *daemon_options)
    try:
        if start:
            made.start()
        yield made
    finally:
        made.close()


class UnderlayEtcd(EtcdServer):
    """An etcd at an address of the underlay that is no host's."""

    def __init__(self, world: World) -> None:
        address = "198.18.0.200"
        super().__init__(world.directory / "etcd", address=address, netns=world.switch)
        command("ip", "-n", world.switch, "addr", "add", f"{address}/24", "dev", "sw0")
        command("ip", "-n", world.switch, "link", "set", "lo", "up")

    def ready(self) -> bool:
        return self.ctl("endpoint", "health", check=False).returncode == 0


def create(host: DockerHost, name: str, *options: object) -> str:
    """Makes a network with Docker's command line, as a user does; gives Docker's id."""
    return host.docker(
        "network", "create", "-d", "pyvxlan", "--ipam-driver", "pyvxlan", *options, name
    )


def shown(host: DockerHost, name: str, *, within_s: float = 20) -> dict[str, Any]:
    """Returns a network once Docker shows it on a host, as Docker shows it."""
    return eventually(
        lambda: host.networks().get(name),
        within_s=within_s,
        what=f"{name} is in Docker of {host.netns}",
    )


def gone(host: DockerHost, name: str, *, within_s: float = 20) -> None:
    """Returns once Docker does not show a network on a host any more."""
    eventually(
        lambda: name not in host.networks(),
        within_s=within_s,
        what=f"{name} is gone from Docker of {host.netns}",
    )


def run(host: DockerHost, name: str, *options: object) -> None:
    """Starts a container that stays, and that a stop ends at once."""
    host.docker("run", "-itd", "--stop-signal", "KILL", "--name", name, *options, "busybox")


def pings(host: DockerHost, container: str, target: str, *options: object, tries: int = 3) -> bool:
    """Whether a ping is answered; a name may come to another host a moment after its container."""
    for left in reversed(range(tries)):
        words = ("exec", container, "ping", *options, "-c", "1", "-W", "2", target)
        if "bytes from" in host.docker_try(*words).stdout:
            return True
        if left:
            time.sleep(0.5)
    return False


def resolves(host: DockerHost, container: str, name: str) -> set[str]:
    """The addresses of a name, once it has one."""

    def addresses() -> set[str]:
        printed = host.docker_try("exec", container, "nslookup", name).stdout
        answer = printed.partition("\n\n")[2]
        return {line.split()[-1] for line in answer.splitlines() if line.startswith("Address")}

    return eventually(addresses, within_s=20, what=f"{name} resolves in {container}")


def busybox_image() -> bytes:
    """A file system with busybox and a link for each of its commands, as a tar."""
    binary = Path("/bin/busybox")
    commands = command(binary, "--list").stdout.split()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "root"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
        tar.add(binary.resolve(), "bin/busybox")
        for name in commands:
            if name == "busybox":
                continue
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        passwd = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        tar.addfile(entry, io.BytesIO(passwd))
    return content.getvalue()


def _pids_of(cgroup: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    return []
