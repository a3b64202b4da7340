"""Every kind of store server that is tested against, as its URL names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer
from tests.servers.process import Server
from tests.servers.zookeeper import ZookeeperServer

SERVERS: Mapping[str, Callable[..., Server]] = {
    "etcd": EtcdServer,
    "consul": ConsulServer,
    "zk": ZookeeperServer,
}
"""Makes a server in a directory; called as `Server` is."""
