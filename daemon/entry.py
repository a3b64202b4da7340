"""What the commands `pyvxlan` and `pyvxlan-daemon` start: imports the program, then runs it.

Importing takes longer than many a person waits before Ctrl-C. Until the program is there, and when
it is done, SIGINT has its default action: the process ends by it, without a traceback. A shell
shows 130 for that, which is also what the programs end with if it comes while they run.
"""

# Not `signal`: it imports enum and more, and that takes as long as all before it.
import _signal as signal  # type: ignore[import-not-found]
import sys


def command_line() -> None:
    """Runs `pyvxlan` and ends the process."""
    _run("pyvxlan.daemon.cli", "main")


def daemon() -> None:
    """Runs `pyvxlan-daemon` and ends the process."""
    _run("pyvxlan.daemon.main", "run")


def _run(module: str, function: str) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else whoever started it has SIGINT ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from importlib import import_module  # noqa: PLC0415

    program = getattr(import_module(module), function)
    try:
        signal.signal(signal.SIGINT, handler)
        program()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
