"""Consul for the contract suite: one server for all tests, and a prefix for each of them."""

from __future__ import annotations

import asyncio
import secrets

from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.consul import ConsulStore
from pyvxlan.daemon.kv.url import parse_url
from tests.servers.consul import ConsulServer


class ConsulLab:
    snapshots = True
    fresh_tokens = True
    resumes = False

    def __init__(self, server: ConsulServer) -> None:
        self.server = server
        self.url = parse_url(f"consul://{server.address}:{server.port}/{secrets.token_hex(8)}/v1")
        self.stores: list[ConsulStore] = []

    async def open(self) -> ConsulStore:
        store = await ConsulStore.open(self.url)
        self.stores.append(store)
        return store

    async def silence(self, store: Store) -> None:
        await store.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def expire(self, store: Store) -> None:
        assert isinstance(store, ConsulStore)
        for session_id in [lease.id for lease in store._leases]:
            path = f"/v1/session/destroy/{session_id}"
            await asyncio.to_thread(self.server.call, "PUT", path)

    async def forget(self) -> None:
        """Consul keeps no history."""

    async def close(self) -> None:
        for store in self.stores:
            await store.close()
