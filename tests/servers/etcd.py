"""Debian's etcd, as tests run it: one member, or a cluster of three."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.pki import Authority, Certificate
from tests.servers.process import Server, free_port

KIND = "etcd+python-etcd3" if find_spec("etcd3") else "etcd"
"""As URLs have it: the client that is installed here; what the two need excludes each other."""
FAST = ("--heartbeat-interval=20", "--election-timeout=200")
"""A member alone waits that long at its start for a leader to appear."""


class EtcdServer(Server):
    """One member of a cluster.

    Args:
        directory: Made for it alone.
        name: Of the member.
        address: Where it listens.
        netns: Name of the namespace that it runs in.
        peers: Names and peer URLs of the whole cluster; itself alone if left out.
        authority: Signs its certificate, and those of its clients; it speaks TLS then.
        client_certificates: Whether it wants one of each client.
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
        authority: Authority | None = None,
        client_certificates: bool = False,
        flags: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, address=address, netns=netns)
        self.name = name
        self.port = free_port()
        self.peers = peers or {name: f"http://{address}:{free_port()}"}
        self.flags = list(flags)
        self.authority = authority
        self.certificate: Certificate | None = None
        self.administrator: tuple[str, ...] = ()
        """What etcdctl needs in order to be let in."""
        if authority is not None:
            self.certificate = authority.issue(f"server-{name}-{self.port}")
            self.flags += [
                f"--cert-file={self.certificate.cert}",
                f"--key-file={self.certificate.key}",
                f"--trusted-ca-file={authority.ca}",
                f"--client-cert-auth={str(client_certificates).lower()}",
            ]

    @property
    def member(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{KIND}://{self.member}/test/v1"

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.member}"

    def words(self) -> Sequence[str]:
        return [
            "etcd",
            f"--data-dir={self.data}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peers[self.name]}",
            *self.identity(),
            *(FAST if len(self.peers) == 1 else ()),
            *self.flags,
        ]

    def identity(self) -> Sequence[str]:
        """What makes it this member of this cluster."""
        cluster = ",".join(f"{name}={url}" for name, url in self.peers.items())
        return [
            f"--name={self.name}",
            f"--initial-advertise-peer-urls={self.peers[self.name]}",
            f"--initial-cluster={cluster}",
        ]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 1):
            return self.ctl("endpoint", "health", check=False).returncode == 0
        return False

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs etcdctl on it."""
        tls: list[str] = []
        if self.certificate and self.authority:
            tls = [
                f"--cacert={self.authority.ca}",
                f"--cert={self.certificate.cert}",
                f"--key={self.certificate.key}",
            ]
        done = subprocess.run(
            [
                *self.enter(),
                "etcdctl",
                f"--endpoints={self.endpoint}",
                "--command-timeout=5s",
                *tls,
                *self.administrator,
                *words,
            ],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def revision(self) -> int:
        """The store's revision now."""
        number: int = self.status()["header"]["revision"]
        return number

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        (found,) = json.loads(self.ctl("endpoint", "status", "--write-out=json").stdout)
        status: dict[str, Any] = found["Status"]
        return status

    def back_up(self, path: Path) -> None:
        """Writes a backup, as an administrator does."""
        self.ctl("snapshot", "save", str(path))

    def restore(self, path: Path) -> None:
        """Replaces its data by those of a backup; it must not run."""
        assert self.process is None, "still running"
        shutil.rmtree(self.data)
        self.ctl("snapshot", "restore", str(path), f"--data-dir={self.data}", *self.identity())

    def guard(self, users: Mapping[str, tuple[str, str]]) -> None:
        """Lets only users in.

        Args:
            users: By name: password, and the prefix that the user may read and write.
        """
        for name, (password, prefix) in users.items():
            self.ctl("user", "add", f"{name}:{password}")
            self.ctl("role", "add", f"role-{name}")
            self.ctl(
                "role", "grant-permission", f"role-{name}", "readwrite", prefix, "--prefix=true"
            )
            self.ctl("user", "grant-role", name, f"role-{name}")
        self.ctl("user", "add", "root:of all")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("auth", "enable")
        self.administrator = ("--user=root:of all",)


class EtcdCluster:
    """Three members on this machine."""

    def __init__(self, directory: Path) -> None:
        names = ("one", "two", "three")
        peers = {name: f"http://127.0.0.1:{free_port()}" for name in names}
        self.members = {
            server.member: server
            for server in (EtcdServer(directory / name, name=name, peers=peers) for name in names)
        }

    @property
    def url(self) -> str:
        return f"{KIND}://{','.join(self.members)}/test/v1"

    def lead_elsewhere(self, member: str) -> None:
        """Lets another member lead, if this one does: until one is elected nobody answers."""
        said = {name: server.status() for name, server in self.members.items()}
        own = said[member]["header"]["member_id"]
        if said[member]["leader"] == own:
            other = next(
                status["header"]["member_id"]
                for status in said.values()
                if status["header"]["member_id"] != own
            )
            self.members[member].ctl("move-leader", f"{other:x}")

    def __enter__(self) -> Self:
        for server in self.members.values():
            server.start(wait=False)
        try:
            for server in self.members.values():
                server.wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self.members.values():
            server.kill()
