"""The forwarder as a process: started in a session of its own, found again, ended.

It outlives the daemon. Its process id and start time stand in `forwarder.pid`, so that nobody
else's process is ever taken for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pyvxlan.daemon.errors import DataplaneError

MODULE = "pyvxlan.forwarder"
END_S = 3.0
"""How long a forwarder may take to end before it is killed."""


@dataclass(frozen=True, slots=True)
class ForwarderFiles:
    """Where one daemon's forwarder keeps what it has in the file system."""

    run_dir: Path
    name: str = "forwarder"

    @property
    def successor(self) -> ForwarderFiles:
        """Where the next one keeps it until it has taken over."""
        return ForwarderFiles(self.run_dir, "successor")

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.run_dir / f"{self.name}.sock"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.run_dir / "forwarder.log"

    @property
    def pid(self) -> Path:
        """Its process id and start time."""
        return self.run_dir / f"{self.name}.pid"


def spawn(files: ForwarderFiles, user: str, log_level: str) -> None:
    """Starts a forwarder that listens on `files.socket`, which others can reach at once.

    Raises:
        DataplaneError: There is no such user, or the process can't be started.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise DataplaneError(f"user {user} does not exist: set forwarder_user to another") from None
    files.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as listener, files.log.open("ab") as log:
            files.socket.unlink(missing_ok=True)
            listener.bind(str(files.socket))
            files.socket.chmod(0o600)
            listener.listen()
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", MODULE),
                    *("--listen-fd", str(listener.fileno())),
                    *("--uid", str(account.pw_uid), "--gid", str(account.pw_gid)),
                    *("--log-level", log_level.upper()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                cwd="/",
                start_new_session=True,
            )
        # It is meant to outlive this object, which otherwise would complain.
        process.returncode = 0
        files.pid.write_text(f"{process.pid} {_start_ticks(process.pid)}\n", encoding="ascii")
    except OSError as error:
        raise DataplaneError(f"the forwarder can't be started: {error}") from error


def promote(files: ForwarderFiles) -> None:
    """Gives a successor, who has taken over, the names that everybody knows."""
    files.successor.pid.replace(files.pid)
    files.successor.socket.replace(files.socket)


async def end(files: ForwarderFiles) -> None:
    """Ends the recorded forwarder if it still runs: asks it, then kills it; forgets its files."""
    pidfd = _open_recorded(files)
    if pidfd is not None:
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(pidfd, number)
                if await _ended(pidfd):
                    break
            _reap(pidfd)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
    files.pid.unlink(missing_ok=True)
    files.socket.unlink(missing_ok=True)


def _reap(pidfd: int) -> None:
    """Takes the exit status of a child; the daemon that started it may be another, long gone."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


async def _ended(pidfd: int) -> bool:
    """Waits for the end of a process, but not for long."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(END_S):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True


def _open_recorded(files: ForwarderFiles) -> int | None:
    """Opens a pidfd of the recorded forwarder; None if it does not run any more."""
    try:
        pid, ticks = map(int, files.pid.read_text(encoding="ascii").split())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    # Compared after opening: from here on the descriptor can't become another process.
    if _start_ticks(pid) != ticks:
        os.close(pidfd)
        return None
    return pidfd


def _start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The command name, in parentheses, may hold anything; the start is field 22.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])
