"""A real Consul agent, as tests run it; built by tests/servers/consul-agent/build."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

from tests.servers.process import Server, free_port

REPO = Path(__file__).resolve().parents[2]
PROGRAM = REPO / ".cache" / "consul" / "consul-agent"
BUILD = "tests/servers/consul-agent/build"


class ConsulServer(Server):
    """One agent of a cluster; alone, unless `join` names others.

    Args:
        directory: Made for it alone.
        address: Where it listens.
        netns: Name of the namespace that it runs in.
        servers: How many servers there are in its cluster, itself among them; 0 makes a client
            agent, which stands between hosts and servers.
        join: Serf addresses of others.
        settings: What else its configuration says; replaces what is said here.
    """

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        servers: int = 1,
        join: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(directory, address=address, netns=netns)
        self.port, self.rpc_port = free_port(), free_port()
        self.serf = f"{address}:{free_port()}"
        self.servers = servers
        self.join = list(join)
        self.settings = dict(settings or {})
        self.options = ""
        """What its URL says after the prefix."""
        self.token = ""
        """What `call` shows."""
        self.context: ssl.SSLContext | None = None
        """How `call` speaks TLS, if it does."""

    @property
    def url(self) -> str:
        return f"consul://{self.address}:{self.port}/test/v1{self.options}"

    def words(self) -> Sequence[str]:
        assert PROGRAM.exists(), f"there is no Consul to test against: build it with {BUILD}"
        config = self.directory / "consul.json"
        config.write_text(json.dumps(self._config()))
        return [str(PROGRAM), "agent", f"-config-file={config}"]

    def _config(self) -> Mapping[str, Any]:
        web = "https" if self.context else "http"
        closed = dict.fromkeys(("dns", "http", "https", "grpc", "grpc_tls", "serf_wan"), -1)
        serf_port = int(self.serf.rpartition(":")[2])
        return {
            "data_dir": str(self.data),
            "node_name": self.directory.name,
            "server": self.servers > 0,
            **({"bootstrap_expect": self.servers} if self.servers else {}),
            "retry_join": self.join,
            "retry_interval": "1s",
            "bind_addr": self.address,
            "client_addr": self.address,
            "ports": {**closed, web: self.port, "server": self.rpc_port, "serf_lan": serf_port},
            "connect": {"enabled": False},
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            **self.settings,
        }

    def ready(self) -> bool:
        """Whether there is a leader that knows of this server, so that sessions can be made."""
        try:
            nodes = json.loads(self.call("GET", "/v1/catalog/nodes?consistent"))
        except (URLError, OSError, ValueError):
            return False
        return any(node["Node"] == self.directory.name for node in nodes)

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Asks its HTTP API, as an operator would."""
        web = "https" if self.context else "http"
        request = urllib.request.Request(
            f"{web}://{self.address}:{self.port}{path}",
            data=body,
            method=method,
            headers={"X-Consul-Token": self.token} if self.token else {},
        )
        with urllib.request.urlopen(request, timeout=10, context=self.context) as answer:
            content: bytes = answer.read()
            return content
