"""A network namespace that a server runs in, so that its link can be cut without a sound."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.servers.process import Server

_RULES = """
table inet cut {
    chain in { type filter hook input priority 0; policy drop; iifname "lo" accept; }
    chain out { type filter hook output priority 0; policy drop; oifname "lo" accept; }
}
"""
_VISITOR = """
import asyncio, sys
from pyvxlan.daemon.kv import Delete, Write
from pyvxlan.daemon.kv.open import open_store

async def main(url, puts, deletes, gone):
    store = await open_store(url)
    ops = [Write(key, b"inside") for key in puts.split()] + [Delete(key) for key in deletes.split()]
    if ops:
        await store.txn([], ops)
    while gone and await store.get(gone):
        await asyncio.sleep(0.2)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


class Island:
    """A namespace with one link to the tests' own; needs root."""

    def __init__(self) -> None:
        number = os.getpid() % (1 << 14)  # tests that run at once get addresses of their own
        self.name = f"island{number}"
        self.link = f"isl{number}"
        network = f"198.19.{number >> 6}.{(number & 63) * 4}"
        base = network.rpartition(".")[0]
        last = int(network.rpartition(".")[2])
        self.shore, self.address = f"{base}.{last + 1}", f"{base}.{last + 2}"

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "shore",
                 "netns", self.name)  # fmt: skip
            _run("ip", "address", "add", f"{self.shore}/30", "dev", self.link)
            _run("ip", "link", "set", self.link, "up")
            self._inside("ip", "address", "add", f"{self.address}/30", "dev", "shore")
            self._inside("ip", "link", "set", "shore", "up")
            self._inside("ip", "link", "set", "lo", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The kernel removes a namespace's links some time after it; the next island has this name.
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True, check=False)
        _run("ip", "netns", "delete", self.name)

    def cut(self) -> None:
        """From now on every packet gets lost, and nobody is told."""
        self._inside("nft", "-f", "-", text=_RULES)

    def heal(self) -> None:
        self._inside("nft", "delete", "table", "inet", "cut")

    async def visit(
        self, server: Server, *, puts: str = "", deletes: str = "", gone: str = ""
    ) -> None:
        """Uses the store from inside: writes and deletes keys, and waits until one is gone."""
        visitor = await asyncio.create_subprocess_exec(
            *server.enter(), sys.executable, "-c", _VISITOR, server.url, puts, deletes, gone
        )
        async with asyncio.timeout(60):
            assert await visitor.wait() == 0

    def _inside(self, *words: str, text: str = "") -> None:
        _run("ip", "netns", "exec", self.name, *words, text=text)


def _run(*words: str, text: str = "") -> None:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
