"""Containers of `pyvxlan run` and `exec`: processes in namespaces of their own, nothing more.

A container has its own network, mounts, process ids, host name and IPC, and the host's files.
`/etc` is covered by a layer in memory, so that its resolver, hosts and hostname files are its own
and nothing that it writes there reaches the host. Its first process is made first and waits until
the daemon has attached it; only then it becomes the command, as process 1. What ends before that
leaves nothing behind: the namespaces end with their only process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from pyvxlan.daemon.apiclient import ClientError
from pyvxlan.daemon.foreground import FORWARDED, Foreground

HOSTNAME_MAX: Final = 64
"""The kernel's limit (uname(2)); the daemon refuses to attach names that long."""
NETNS_DIR: Final = "/run/netns"
RESOLV_CONF: Final = "nameserver 127.0.0.11\noptions ndots:0\n"

# include/uapi/linux/sched.h, mount.h, prctl.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class ContainerError(ClientError):
    """A container can't be made or entered."""


class ProgramError(ContainerError):
    """The command can't be run: 127 if it is not there, 126 if it is not allowed (sh(1))."""

    def __init__(self, program: str, number: int) -> None:
        super().__init__(f"{program}: {os.strerror(number)}")
        self.exit_code = 127 if number == errno.ENOENT else 126


@dataclass(slots=True)
class Container:
    """A container that waits to become its command. `pid` is that of its first process."""

    pid: int
    _program: str
    _go: int
    _answers: int

    @classmethod
    def create(
        cls, command: Sequence[str], *, hostname: str, detached: bool, log_file: Path | None = None
    ) -> Container:
        """Makes the namespaces and the first process in them.

        Args:
            command: Program and arguments; looked up in PATH.
            hostname: The container's name for itself.
            detached: Whether it lives on without this process: in a session of its own, with
                nothing to read, and its output in `log_file` or nowhere.
            log_file: Where output is appended to.

        Raises:
            ProgramError: There is no such program.
            ContainerError: The kernel refused a step; nothing is left.
        """
        if shutil.which(command[0]) is None:
            there = "/" in command[0] and os.path.exists(command[0])
            raise ProgramError(command[0], errno.EACCES if there else errno.ENOENT)
        output = _open_output(log_file) if detached else None
        go_read, go_write = os.pipe()
        answers_read, answers_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        _unshare(CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            os.close(answers_read)
            _be_container(command, hostname, output, go_read, answers_write)
        for fd in (go_read, answers_write, output):
            if fd is not None:
                os.close(fd)
        container = cls(pid, command[0], go_write, answers_read)
        try:
            container._expect("ready")
        except BaseException:
            container.kill()
            raise
        return container

    def start(self, addresses: Sequence[str]) -> None:
        """Lets it become its command; `addresses` are its own, for its hosts file.

        Raises:
            ProgramError: It can't; the process is gone.
        """
        try:
            os.write(self._go, json.dumps(list(addresses)).encode())
            self._expect("")
        except BaseException:
            self.kill()
            raise

    def run(self, addresses: Sequence[str]) -> int:
        """Starts it and stays in the foreground until it ends; returns its exit code."""
        with Foreground() as foreground:
            self.start(addresses)
            return foreground.wait(self.pid, is_init=True)

    def kill(self) -> None:
        """Ends it with everything in it. Does no harm to one that has ended."""
        for fd in (self._go, self._answers):
            if fd >= 0:
                os.close(fd)
        self._go = self._answers = -1
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def _expect(self, word: str) -> None:
        """Waits for what the first process says next: `word`, or the end for ""."""
        answer = os.read(self._answers, 4096).decode()
        if answer == word:
            return
        if answer.isdigit():
            raise ProgramError(self._program, int(answer))
        raise ContainerError(answer or "the container ended before its command was started")


def enter(sandbox: Mapping[str, object], command: Sequence[str]) -> int:
    """Runs a command inside a sandbox of this host and returns its exit code.

    With a process, in all its namespaces; otherwise in the network namespace, with the resolver
    set to the daemon.

    Raises:
        ContainerError: The sandbox is gone, or may not be entered.
    """
    pid = sandbox["pid"]
    if isinstance(pid, int):
        _enter_process(pid, sandbox["start_ticks"])
    else:
        _enter_network(str(sandbox["path"]), sandbox["inode"])
    with Foreground() as foreground:
        return foreground.wait(_spawn(command), is_init=False)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat).

    Raises:
        FileNotFoundError: There is no such process.
    """
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def open_process(pid: int, ticks: object) -> int:
    """Opens a descriptor of a process, making sure that it is the one which started then.

    Raises:
        ContainerError: It has ended.
    """
    try:
        descriptor = os.pidfd_open(pid)
        if start_ticks(pid) == ticks:
            return descriptor
        os.close(descriptor)
    except (ProcessLookupError, FileNotFoundError):
        pass
    raise ContainerError(f"process {pid} has ended: its endpoint goes with it")


def _spawn(command: Sequence[str]) -> int:
    """Starts a command as a child; returns its process id once it runs."""
    answers_read, answers_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            _run(command, answers_write)
        finally:
            os._exit(127)
    os.close(answers_write)
    failure = os.read(answers_read, 16).decode()
    os.close(answers_read)
    if failure:
        os.waitpid(child, 0)
        raise ProgramError(command[0], int(failure))
    return child


def _enter_process(pid: int, ticks: object) -> None:
    directory = os.getcwd()
    process = open_process(pid, ticks)
    kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    _check(_libc.setns(process, kinds), f"process {pid} can't be entered")
    os.close(process)
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")


def _enter_network(path: str, inode: object) -> None:
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerError(f"namespace {path} is gone: {error.strerror}") from error
    if os.fstat(namespace).st_ino != inode:
        raise ContainerError(f"namespace {path} is gone: another one has its name now")
    _check(_libc.setns(namespace, CLONE_NEWNET), f"namespace {path} can't be entered")
    os.close(namespace)
    _unshare(CLONE_NEWNS)
    _mount(None, "/", None, MS_REC | MS_SLAVE)
    _cover_etc({"resolv.conf": RESOLV_CONF})
    _check(_libc.umount2(b"/proc", MNT_DETACH), "/proc")


def _be_container(
    command: Sequence[str], hostname: str, output: int | None, go: int, answers: int
) -> NoReturn:
    """The first process: builds its surroundings, waits, becomes the command. Never returns."""
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)  # as process 1 it is deaf to what it does not catch
    try:
        _end_with_parent(signal.SIGKILL)
        if output is not None:
            _leave_session(output)
        _unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC)
        _build_mounts(hostname)
        socket.sethostname(hostname[:HOSTNAME_MAX])
        os.write(answers, b"ready")
        told = os.read(go, 65536)
        if not told:
            os._exit(1)
        _write_hosts(json.loads(told), hostname)
        if output is not None:
            _end_with_parent(0)
        _run(command, answers)
    except (ContainerError, OSError, ValueError) as error:
        os.write(answers, f"container {hostname} can't be made: {error}".encode())
    finally:
        os._exit(127)


def _leave_session(output: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(fd, target)


def _end_with_parent(number: int) -> None:
    """Sets the signal that this process gets when its parent ends; 0 for none."""
    _libc.prctl(PR_SET_PDEATHSIG, *(ctypes.c_ulong(value) for value in (number, 0, 0, 0)))


def _build_mounts(hostname: str) -> None:
    _mount(None, "/", None, MS_REC | MS_SLAVE)
    _drop_namespace_mounts()
    groups = os.open("/sys/fs/cgroup", os.O_PATH) if os.path.ismount("/sys/fs/cgroup") else None
    _cover_etc({"resolv.conf": RESOLV_CONF, "hostname": f"{hostname}\n", "hosts": ""})
    _check(_libc.umount2(b"/proc", MNT_DETACH), "/proc")
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if groups is not None:
        _mount(f"/proc/self/fd/{groups}", "/sys/fs/cgroup", None, MS_BIND | MS_REC)
        os.close(groups)


def _drop_namespace_mounts() -> None:
    """Lets go of the network namespaces that are mounted as files on the host.

    A copy of such a mount in here would keep the namespace alive after the host removed it. What
    is left of `ip netns` names is covered, else `ip` complains of each.
    """
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "nsfs":
            target = fields.split()[4].encode().decode("unicode_escape")
            _libc.umount2(os.fsencode(target), MNT_DETACH)
    if os.path.isdir(NETNS_DIR):
        _mount("tmpfs", NETNS_DIR, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4k")


def _cover_etc(files: Mapping[str, str]) -> None:
    """Puts files into /etc that only this mount namespace sees; leaves a tmpfs on /proc.

    /proc serves as a place that surely exists and that nothing needs meanwhile. A layer over
    /etc also holds when a file there is a link, is missing, or is replaced on the host later;
    where the kernel has no overlayfs, files that exist are covered one by one.
    """
    _mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")
    for directory in ("/proc/upper", "/proc/work"):
        os.mkdir(directory)
        os.chmod(directory, 0o755)  # noqa: S103 - as /etc has it, whatever the umask
    layers = "lowerdir=/etc,upperdir=/proc/upper,workdir=/proc/work"
    try:
        _mount("overlay", "/etc", "overlay", 0, layers)
    except ContainerError:
        for name, content in files.items():
            _write(f"/proc/{name}", content)
            if os.path.exists(f"/etc/{name}"):
                _mount(f"/proc/{name}", os.path.realpath(f"/etc/{name}"), None, MS_BIND)
        return
    for name, content in files.items():
        Path("/etc", name).unlink(missing_ok=True)
        _write(f"/etc/{name}", content)


def _write_hosts(addresses: Sequence[str], hostname: str) -> None:
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address.partition('/')[0]}\t{hostname}" for address in addresses]
    if os.path.exists("/etc/hosts"):
        _write("/etc/hosts", "\n".join(lines) + "\n")


def _run(command: Sequence[str], answers: int) -> NoReturn:
    """Becomes the command, with signals as a program expects them; else says the error's number."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - no shell, that is what is wanted
    except OSError as error:
        os.write(answers, str(error.errno).encode())
        os._exit(127)


def _open_output(log_file: Path | None) -> int:
    try:
        return os.open(
            log_file or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
    except OSError as error:
        raise ContainerError(f"log file {log_file}: {error.strerror}") from error


def _write(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(content)
        os.fchmod(fd, 0o644)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    source_, target_, kind_, options_ = (
        None if text is None else os.fsencode(text) for text in (source, target, kind, options)
    )
    done = _libc.mount(source_, target_, kind_, ctypes.c_ulong(flags), options_)
    _check(done, f"mount of {kind or 'bind'} on {target}")


def _unshare(kinds: int) -> None:
    _check(_libc.unshare(kinds), "namespaces can't be made")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        remedy = ": run as root" if number == errno.EPERM else ""
        raise ContainerError(f"{what}: {os.strerror(number)}{remedy}")
