"""Debian's etcd, as tests run it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.process import Server, free_port

FAST = ("--heartbeat-interval=20", "--election-timeout=200")
"""A member alone waits that long at its start for a leader to appear."""


class EtcdServer(Server):
    """One member of a cluster; alone, unless `peers` names others.

    Args:
        directory: Made for it alone.
        name: Of the member.
        address: Where it listens.
        netns: Name of the namespace that it runs in.
        peers: URL for other members, by name, with its own; itself alone if left out.
        flags: What else the command line says.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "one",
        address: str = "127.0.0.1",
        netns: str | None = None,
        peers: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, address=address, netns=netns)
        self.name = name
        self.port = free_port()
        self.peers = peers or {name: f"http://{address}:{free_port()}"}
        self.flags = list(flags)
        self.options = ""
        """What its URL says after the prefix."""
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"etcd://{self.address}:{self.port}/test/v1{self.options}"

    def words(self) -> Sequence[str]:
        client, peer = f"{self.scheme}://{self.address}:{self.port}", self.peers[self.name]
        cluster = ",".join(f"{name}={url}" for name, url in self.peers.items())
        return [
            "etcd",
            f"--name={self.name}",
            f"--data-dir={self.data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={cluster}",
            *(FAST if len(self.peers) == 1 else ()),
            *self.flags,
        ]

    def ready(self) -> bool:
        return self.ctl("endpoint", "health", check=False).returncode == 0

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs etcdctl on it."""
        return subprocess.run(
            [
                *self.enter(),
                "etcdctl",
                f"--endpoints={self.scheme}://{self.address}:{self.port}",
                "--command-timeout=3s",
                *words,
            ],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=check,
        )
