"""ZooKeeper servers: Debian's package `zookeeper`, alone or as an ensemble."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.pki import Authority
from tests.servers.process import Server, free_port

JARS = Path("/usr/share/java")
JAR = JARS / "zookeeper.jar"
LOGGER = JARS / "slf4j-simple.jar"
TLS_JARS = ("netty-codec.jar", "netty-resolver.jar")
"""What TLS needs beside the jars that Debian's package names itself."""
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
        authority: Signs its certificate, and those that it wants of its clients; it speaks TLS
            then, at the port that its URL names.
    """

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        settings: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        authority: Authority | None = None,
    ) -> None:
        super().__init__(directory, address=address, netns=netns)
        assert JAR.exists(), "install Debian's package zookeeper"
        self.port = free_port() if netns is None else 2181
        self.secure_port = 0
        """For TLS; 0 without."""
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
            **(self._tls(authority) if authority else {}),
            **(settings or {}),
        }

    def _tls(self, authority: Authority) -> Mapping[str, str]:
        issued = authority.issue(f"zookeeper-{self.port}")
        both = self.directory / "server.pem"
        both.write_bytes(issued.key.read_bytes() + issued.cert.read_bytes())
        self.secure_port = free_port()
        return {
            "secureClientPort": str(self.secure_port),
            "secureClientPortAddress": self.address,
            "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
            "ssl.keyStore.location": str(both),
            "ssl.trustStore.location": str(authority.ca),
        }

    @property
    def member(self) -> str:
        """As a store's URL names it."""
        return f"{self.address}:{self.secure_port or self.port}"

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
            ":".join(map(str, [JAR, LOGGER, *(JARS / jar for jar in TLS_JARS)])),
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
