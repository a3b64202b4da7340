"""etcd for the contract suite: one server for all tests, and a prefix for each of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from importlib import import_module
from typing import Any

from pyvxlan.daemon.kv import Store, Write
from pyvxlan.daemon.kv.open import CLIENTS
from pyvxlan.daemon.kv.url import member_name, parse_url
from tests.kv.labs.lab import Stores
from tests.servers.etcd import KIND, EtcdServer


async def open_client(url: str) -> Store:
    """Opens a store as it is, without what bounds its calls."""
    module, name, _ = CLIENTS[parse_url(url).kind]
    store: Store = await getattr(import_module(module), name).open(parse_url(url))
    return store


async def member_in_use(store: Any) -> str:
    """The member that a store talks to."""
    if KIND == "etcd":
        name: str = (await store._channel._connected(time.monotonic() + 2)).name
    else:
        name = (await store._connection.settled()).name
    return name


async def token_in_use(store: Any) -> str:
    """What a store sends to show who it is."""
    if KIND == "etcd":
        return str(store._channel._token)
    return str((await store._connection.settled()).client.metadata)


def first_choice(store: Any) -> str:
    """The member that a store asks first."""
    if KIND == "etcd":
        return str(store._channel._members[0].name)
    return member_name(next(iter(store._connection._failed_at)))


class EtcdLab(Stores[Store]):
    snapshots = True
    fresh_tokens = True
    resumes = KIND == "etcd"

    def __init__(self, server: EtcdServer) -> None:
        super().__init__()
        self.server = server
        self.prefix = f"{secrets.token_hex(8)}/v1"

    async def connect(self) -> Store:
        return await open_client(f"{KIND}://{self.server.member}/{self.prefix}")

    async def expire(self, store: Store) -> None:
        names = f"{self.prefix}/\x01session/"
        found = await asyncio.to_thread(self.server.ctl, "get", "--prefix", "--keys-only", names)
        for key in found.stdout.split():
            await asyncio.to_thread(self.server.ctl, "lease", "revoke", key.removeprefix(names))

    async def forget(self) -> None:
        store = self.stores[0]
        await store.txn([], [Write("forget/this", b"1")])
        item = await store.get("forget/this")
        assert item is not None
        await asyncio.to_thread(self.server.ctl, "compact", str(item.revision))
