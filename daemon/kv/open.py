"""From a store's URL to the store.

Each client is imported only when its store is used: the libraries behind it are extras.
"""

from __future__ import annotations

from importlib import import_module

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.bounded import LIST_S, BoundedStore
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.kv.store import Store
from pyvxlan.daemon.kv.url import StoreUrl, parse_url

CLIENTS = {
    "etcd": ("pyvxlan.daemon.kv.etcd.store", "EtcdStore", "etcd"),
    "etcd+python-etcd3": ("pyvxlan.daemon.kv.etcd3.store", "Etcd3Store", "python-etcd3"),
    "consul": ("pyvxlan.daemon.kv.consul", "ConsulStore", "consul"),
    "zk": ("pyvxlan.daemon.kv.zookeeper", "ZookeeperStore", "zookeeper"),
}
"""By kind: the module, its class, and the extra that brings what it imports."""


async def open_store(text: str, *, list_s: float = LIST_S) -> Store:
    """Opens the store behind a URL, or `memory:` for tests.

    A remote store need not answer for that: what can be checked without it is checked, and calls
    fail with `StoreUnavailableError` until it does. Lists may take `list_s` seconds.

    Raises:
        ConfigError: The URL is not usable, or the client's library is not installed.
        StoreError: The store can't be used.
    """
    url = parse_url(text)
    if url.kind == "memory":
        return MemoryStore()
    if url.path is not None:
        return BoundedStore(await EmbeddedStore.open(url.path), str(url.path), list_s=list_s)
    return BoundedStore(await _open_remote(url), str(url), list_s=list_s)


async def _open_remote(url: StoreUrl) -> Store:
    module, name, extra = CLIENTS[url.kind]
    try:
        client = getattr(import_module(module), name)
    except ImportError as error:
        if error.name and error.name.startswith("pyvxlan"):
            raise
        package = ".".join((error.name or "").split(".")[:2])
        missing = isinstance(error, ModuleNotFoundError)
        what = f"the Python package {package}" if missing else f"another version of {package}"
        raise ConfigError(
            f"store {url}: {url.kind} needs {what}: pip install 'pyvxlan[{extra}]'"
        ) from error
    store: Store = await client.open(url)
    return store
