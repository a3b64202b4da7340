"""The two that are compared: Engines with our plug-in, and those with the original overlay driver.

Both are two hosts in namespaces of their own with an etcd on host 1, the same Debian package of
Docker and the same image. The original needs an Engine before version 23, which still has
`cluster-store`, and etcd's old API, which etcd 3.4 serves with `--enable-v2`.
"""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.docker.hosts import DockerHost, DockerWorld
from tests.netns.world import inside
from tests.servers.etcd import EtcdServer

OURS = "ours"
ORIGINAL = "original"
GRPC_CALLS = re.compile(
    r'^grpc_server_handled_total\{.*grpc_method="(\w+)".*grpc_type="unary"\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests that a store has served."""

    reads: int
    writes: int

    def __sub__(self, other: Requests) -> Requests:
        return Requests(self.reads - other.reads, self.writes - other.writes)


class UnderlayEtcd(EtcdServer):
    """An etcd on a host's underlay address."""

    def __init__(self, host: DockerHost) -> None:
        super().__init__(
            host.world.directory / "etcd",
            address=host.address,
            netns=host.netns,
            flags=["--enable-v2"],
        )

    def ready(self) -> bool:
        return self.ctl("endpoint", "health", check=False).returncode == 0

    def read(self, path: str) -> str:
        """Asks its HTTP port."""
        assert self.netns

        def ask() -> str:
            with urllib.request.urlopen(f"{self.endpoint}/{path}", timeout=5) as answer:
                return str(answer.read().decode())

        return inside(self.netns, ask)


class OriginalHost(DockerHost):
    """A host whose Engine is started with a cluster store; nothing of ours runs there."""

    def follow(self, store: EtcdServer) -> None:
        """Names the store for the Engine's next start."""
        self.config = {
            "storage-driver": "overlay2",
            "cluster-store": f"etcd://{store.member}",
            "cluster-advertise": f"{self.address}:2376",
        }

    def cleanup(self) -> Any:
        """Has nothing to remove."""


class OriginalWorld(DockerWorld):
    """Hosts with the original overlay driver."""

    host_type = OriginalHost
    hosts: list[OriginalHost]  # type: ignore[assignment]

    def start(self) -> None:
        for host in self.hosts:
            host.hold()
            host.start_engine(wait=False)
        for host in self.hosts:
            host.wait_engine()
            host.import_image()


class Side:
    """One of the two: what differs between them, for those who measure."""

    def __init__(self, name: str, world: DockerWorld, store: UnderlayEtcd) -> None:
        self.name = name
        self.world = world
        self.store = store

    def create_network(self, host: DockerHost, name: str, subnet: str = "") -> str:
        """Makes an overlay by the Engine's API; gives the Engine's id."""
        driver = "pyvxlan" if self.name == OURS else "overlay"
        ipam: dict[str, Any] = {"Config": [{"Subnet": subnet}]} if subnet else {}
        if self.name == OURS:
            ipam["Driver"] = driver
        body = {"Name": name, "CheckDuplicate": True, "Driver": driver, "IPAM": ipam}
        return str(host.api("POST", "/networks/create", body)["Id"])

    def requests(self) -> Requests:
        """Requests that the store has served so far; watches and renewed leases are none."""
        if self.name == OURS:
            calls: Counter[str] = Counter()
            for method, count in GRPC_CALLS.findall(self.store.read("metrics")):
                calls[method] += int(float(count))
            return Requests(calls["Range"], calls.total() - calls["Range"])
        counted = json.loads(self.store.read("v2/stats/store"))
        numbers = {k: n for k, n in counted.items() if k.endswith(("Success", "Fail"))}
        reads = numbers["getsSuccess"] + numbers["getsFail"]
        return Requests(reads, sum(numbers.values()) - reads)

    def rejoin(self, host: DockerHost) -> None:
        """Starts a host's networking anew, as one that joins late."""
        host.stop_engine()
        if self.name == OURS:
            host.stop()
            host.start()
        host.start_engine()


@contextlib.contextmanager
def sides(name: str, *kinds: str) -> Iterator[list[Side]]:
    """Starts a side of each of these kinds, all at once; ends them at the end."""
    with contextlib.ExitStack() as stack:
        found: list[Side] = []
        for number, kind in enumerate(kinds):
            world = (DockerWorld if kind == OURS else OriginalWorld)(f"{name}{number}", 2)
            stack.callback(world.close)
            store = stack.enter_context(UnderlayEtcd(world[1]))
            world.store = store.url
            for host in world.hosts:
                if isinstance(host, OriginalHost):
                    host.follow(store)
            found.append(Side(kind, world, store))
        for side in found:
            side.world.start()
        yield found
