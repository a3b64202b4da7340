"""Consul for the contract suite: one server for all tests, and a prefix for each of them."""

from __future__ import annotations

import asyncio
import secrets

from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.consul import ConsulStore
from pyvxlan.daemon.kv.url import parse_url
from tests.kv.labs.lab import Stores
from tests.servers.consul import ConsulServer


class ConsulLab(Stores[ConsulStore]):
    snapshots = True
    fresh_tokens = True
    resumes = False

    def __init__(self, server: ConsulServer) -> None:
        super().__init__()
        self.server = server
        self.url = parse_url(f"consul://{server.address}:{server.port}/{secrets.token_hex(8)}/v1")

    async def connect(self) -> ConsulStore:
        return await ConsulStore.open(self.url)

    async def expire(self, store: Store) -> None:
        assert isinstance(store, ConsulStore)
        for session_id in [lease.id for lease in store._leases]:
            path = f"/v1/session/destroy/{session_id}"
            await asyncio.to_thread(self.server.call, "PUT", path)

    async def forget(self) -> None:
        """Consul keeps no history."""
