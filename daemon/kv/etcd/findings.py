"""What is found of etcd's condition with either client. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyvxlan.daemon.kv.health import Finding
from pyvxlan.daemon.kv.url import StoreUrl


def version_of(name: str, version: str) -> Finding:
    """Judges a member's version."""
    if _loses_data(version):
        return Finding(
            "warning",
            "version",
            f"{name} runs etcd {version}, which can lose data after a crash: upgrade to "
            "3.4.22, 3.5.6 or later",
        )
    return Finding("ok", "version", f"{name} runs etcd {version}")


def clear_password(url: StoreUrl) -> Sequence[Finding]:
    """Warns of a password that everybody on the way can read."""
    if not url.user or url.tls:
        return ()
    return (
        Finding(
            "warning",
            "password",
            f"the password of user {url.user} goes over the network unencrypted: use TLS (ca=PATH)",
        ),
    )


def _loses_data(version: str) -> bool:
    """Whether upstream advises against a version; one that can't be read is not judged."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    number = tuple(map(int, match.groups()))
    return number < (3, 4, 22) or (3, 5, 0) <= number <= (3, 5, 5)
