"""Stands in for a command on the terminal: signals, stops and exit codes go to it and come back.

The command shares this process's process group, so that the terminal reaches both. A command that
is process 1 of its PID namespace is deaf to every signal that it does not catch; here it gets what
any other program would get: it ends, or stops (pid_namespaces(7)).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final, Self

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_WATCHED: Final = frozenset({*FORWARDED, signal.SIGTSTP, signal.SIGCHLD})
SI_KERNEL: Final = 0x80
"""`si_code` of a signal from the terminal: the command has got it too (sigaction(2))."""


class Foreground:
    """Keeps signals back while inside, so that none is lost between a command's start and `wait`.

    At the end the terminal is this process's again, whoever took it inside.
    """

    def __enter__(self) -> Self:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_WATCHED, signal.SIGTTOU})
        self._terminal = _controlled_terminal()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal is not None:
            os.tcsetpgrp(self._terminal, os.getpgrp())
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, pid: int, *, is_init: bool) -> int:
        """Waits for a child and passes on what happens meanwhile; returns its exit code.

        A child that a signal ended gives 128 plus the signal's number, as in a shell.
        """
        ended_by = 0
        while True:
            exit_code = _reap(pid)
            if exit_code is not None:
                return 128 + ended_by if ended_by else exit_code
            info = signal.sigwaitinfo(_WATCHED)
            if info.si_signo == signal.SIGTSTP:
                _stop_both(pid)
            elif info.si_signo in FORWARDED:
                ended_by = ended_by or _pass_on(pid, info, is_init=is_init)


def _reap(pid: int) -> int | None:
    """Gives the exit code if the child has ended; stops with it if it was stopped."""
    done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
    if done == 0:
        return None
    if os.WIFSTOPPED(status):
        _stop_both(pid)
        return _reap(pid)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pass_on(pid: int, info: signal.struct_siginfo, *, is_init: bool) -> int:
    """Passes a signal on; returns its number if it took a kill to do what it does."""
    number = info.si_signo
    try:
        if is_init and not _answers_to(pid, number):
            os.kill(pid, signal.SIGKILL)
            return number
        if info.si_code != SI_KERNEL:
            os.kill(pid, number)
    except (ProcessLookupError, FileNotFoundError):
        pass
    return 0


def _stop_both(pid: int) -> None:
    """Stops the child and this process until a shell continues them."""
    os.kill(pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


def _answers_to(pid: int, number: int) -> bool:
    """Tells whether a process catches or ignores a signal (proc(5); bit 0 is signal 1)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        name, _, mask = line.partition(":")
        if name in {"SigCgt", "SigIgn"} and int(mask, 16) >> (number - 1) & 1:
            return True
    return False


def _controlled_terminal() -> int | None:
    """The descriptor of the terminal that this process is in the foreground of, if any."""
    try:
        fd = sys.stdin.fileno() if sys.stdin else -1
        return fd if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp() else None
    except (OSError, ValueError):
        return None
