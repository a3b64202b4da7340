"""ZooKeeper servers: Debian's package `zookeeper`, alone or as an ensemble."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.process import Server, free_port

JAR = Path("/usr/share/java/zookeeper.jar")
LOGGER = Path("/usr/share/java/slf4j-simple.jar")
JAVA = (
    "java",
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)


class ZookeeperServer(Server):
    """One server; alone unless `join` made it a member of an ensemble.

    Args:
        settings: Lines of zoo.cfg that differ from the usual; an empty value leaves one out.
        properties: System properties of the server's Java.
    """

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        settings: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, address=address, netns=netns)
        assert JAR.exists(), "install Debian's package zookeeper"
        self.port = free_port() if netns is None else 2181
        self.number = 1
        self.members: Mapping[int, tuple[str, int, int]] = {}
        """By number: address, the port of the quorum, the port of elections; empty if alone."""
        self.properties = properties or {}
        self.settings = {
            "tickTime": "2000",
            "initLimit": "10",
            "syncLimit": "5",
            "clientPort": str(self.port),
            "clientPortAddress": self.address,
            "dataDir": str(self.data),
            "admin.enableServer": "false",
            "maxClientCnxns": "0",
            **(settings or {}),
        }

    @property
    def member(self) -> str:
        """As a store's URL names it."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"zk://{self.member}/test/v1"

    def words(self) -> Sequence[str]:
        settings = dict(self.settings)
        for number, (address, quorum, election) in self.members.items():
            settings[f"server.{number}"] = f"{address}:{quorum}:{election}"
        if self.members:
            (self.data / "myid").write_text(f"{self.number}\n")
        config = self.directory / "zoo.cfg"
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items() if value))
        return [
            *JAVA,
            *(f"-D{name}={value}" for name, value in self.properties.items()),
            "-cp",
            f"{JAR}:{LOGGER}",
            "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            str(config),
        ]

    def ready(self) -> bool:
        """Whether it answers `srvr`, which it does only as a part of a quorum."""
        answer = b""
        try:
            with socket.create_connection((self.address, self.port), 1) as sock:
                sock.sendall(b"srvr")
                while part := sock.recv(4096):
                    answer += part
        except OSError:
            return False
        return b"Mode: " in answer


class Ensemble:
    """Servers that make decisions by majority, and choose another leader after about 2 s."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        settings = {"tickTime": "1000", "syncLimit": "2", "maxSessionTimeout": "40000"}
        self.servers = [
            ZookeeperServer(directory / str(number), settings=settings)
            for number in range(1, size + 1)
        ]
        members = {
            number: (server.address, free_port(), free_port())
            for number, server in enumerate(self.servers, 1)
        }
        for number, server in enumerate(self.servers, 1):
            server.number, server.members = number, members

    @property
    def members(self) -> str:
        """As a store's URL names them."""
        return ",".join(server.member for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait()

    def kill(self) -> None:
        for server in self.servers:
            server.kill()
