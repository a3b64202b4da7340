"""Kernel settings below /proc/sys/net, of the calling thread's network namespace."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/proc/sys/net")
FORWARDING = "ipv4/ip_forward"


def read(name: str) -> str | None:
    """Reads a setting by its path below /proc/sys/net; None if this kernel has none such."""
    try:
        return (ROOT / name).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Sets a setting, if it differs; one that this kernel does not have is left out.

    Raises:
        OSError: The kernel refused, as where /proc/sys is read-only.
    """
    if read(name) not in (None, value):
        (ROOT / name).write_text(value, encoding="ascii")


def limit_ipv6(ifname: str, *, enabled: bool) -> None:
    """Gives an interface IPv6 or not; either way it takes no address from anybody's word.

    With IPv6 it has a link-local address, but no router advertisement counts: any container could
    send one.
    """
    if enabled:
        write(f"ipv6/conf/{ifname}/accept_ra", "0")
        write(f"ipv6/conf/{ifname}/autoconf", "0")
    write(f"ipv6/conf/{ifname}/disable_ipv6", "0" if enabled else "1")
