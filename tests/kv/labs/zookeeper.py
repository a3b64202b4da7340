"""Stores on a real ZooKeeper server; each lab has a prefix of its own."""

from __future__ import annotations

import asyncio
import secrets

from kazoo.client import KazooClient

from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.kv.zookeeper import ZookeeperStore
from tests.kv.labs.lab import Stores


class ZookeeperLab(Stores[ZookeeperStore]):
    snapshots = False
    fresh_tokens = True
    resumes = False

    def __init__(self, members: str, prefix: str = "", options: str = "") -> None:
        super().__init__()
        self.members = members
        self.prefix = prefix or secrets.token_hex(8)
        self.url = parse_url(f"zk://{members}/{self.prefix}?{options}")

    async def connect(self) -> ZookeeperStore:
        return await ZookeeperStore.open(self.url)

    async def expire(self, store: Store) -> None:
        assert isinstance(store, ZookeeperStore)
        for held in list(store._held.values()):
            identity = held.link._kazoo.client_id
            await asyncio.to_thread(end_session, self.members, identity)

    async def forget(self) -> None:
        """ZooKeeper keeps no history that it could forget."""


def end_session(members: str, identity: tuple[int, bytes]) -> None:
    """Ends another client's session, as a server does that hears nothing of it."""
    client = KazooClient(members, client_id=identity)
    client.start()
    client.stop()
    client.close()
