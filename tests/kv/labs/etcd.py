"""etcd for the contract suite: one server for all tests, and a prefix for each of them."""

from __future__ import annotations

import asyncio
import secrets

from pyvxlan.daemon.kv import Store, Write
from pyvxlan.daemon.kv.etcd.store import EtcdStore
from pyvxlan.daemon.kv.url import parse_url
from tests.kv.labs.lab import Stores
from tests.servers.etcd import EtcdServer


class EtcdLab(Stores[EtcdStore]):
    snapshots = True
    fresh_tokens = True
    resumes = True

    def __init__(self, server: EtcdServer) -> None:
        super().__init__()
        self.server = server
        self.url = parse_url(f"etcd://{server.address}:{server.port}/{secrets.token_hex(8)}/v1")

    async def connect(self) -> EtcdStore:
        return await EtcdStore.open(self.url)

    async def expire(self, store: Store) -> None:
        assert isinstance(store, EtcdStore)
        for session_id in [lease.id for lease in store._sessions._leases.values()]:
            await asyncio.to_thread(self.server.ctl, "lease", "revoke", session_id)

    async def forget(self) -> None:
        store = self.stores[0]
        await store.txn([], [Write("forget/this", b"1")])
        item = await store.get("forget/this")
        assert item is not None
        await asyncio.to_thread(self.server.ctl, "compact", str(item.revision))
