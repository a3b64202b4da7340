"""From a store's URL to the store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.kv.store import Store

EXAMPLE = "sqlite:////var/lib/pyvxlan/store.db"


async def open_store(url: str) -> Store:
    """Opens the store behind a URL: `sqlite:///<absolute path>`, or `memory:` for tests.

    Raises:
        ConfigError: The URL is not one that this version knows.
        StoreError: The store can't be used.
    """
    if url in {"memory:", "memory://"}:
        return MemoryStore()
    return await EmbeddedStore.open(sqlite_path(url))


def sqlite_path(url: str) -> Path:
    """Reads the path out of `sqlite:////path` or `sqlite:///path`; both mean `/path`.

    Raises:
        ConfigError: It is no such URL.
    """
    parts = urlsplit(url)
    if not parts.scheme and url.startswith("/"):
        raise ConfigError(f"store {url!r} is a path: write sqlite://{url}")
    if parts.scheme != "sqlite":
        raise ConfigError(
            f"store {url!r} is of a kind that this version does not know: use {EXAMPLE}"
        )
    path = unquote(parts.path).lstrip("/")
    if parts.netloc or parts.query or parts.fragment or not path or path.endswith("/"):
        raise ConfigError(f"store {url!r} must name an absolute path to a file, as {EXAMPLE} does")
    return Path("/", path)
