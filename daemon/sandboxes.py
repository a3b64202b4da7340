"""Watches the sandboxes of local endpoints: one that is gone is noticed and told.

A sandbox bound to a process is watched by a pidfd, and so its end is known at once; one that is a
file is looked at in every full comparison.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping

from pyvxlan.daemon.errors import DaemonError
from pyvxlan.daemon.model import LocalEndpoint, Sandbox

log = logging.getLogger(__name__)


class Sandboxes:
    """Knows which local endpoints have lost their sandbox.

    Args:
        alive: Tells whether a sandbox still is what it was.
        changed: Called when `check` should be called soon.
    """

    def __init__(self, alive: Callable[[Sandbox], bool], changed: Callable[[], None]) -> None:
        self.lost: set[str] = set()
        """Ids of local endpoints whose sandbox is gone."""
        self.on_lost: Callable[[str], Awaitable[None]] | None = None
        self._alive = alive
        self._changed = changed
        self._known: dict[str, Sandbox] = {}
        self._pidfds: dict[str, int] = {}
        self._suspects: set[str] = set()
        self._dirty: set[str] = set()
        self._tellers: dict[str, asyncio.Task[None]] = {}

    def check(self, endpoints: Mapping[str, LocalEndpoint], *, everyone: bool) -> None:
        """Looks at new endpoints and at suspects, or at all, and tells of those that are lost."""
        for endpoint_id in self._known.keys() - endpoints.keys():
            self._forget(endpoint_id)
        for endpoint_id, here in endpoints.items():
            new = self._known.get(endpoint_id) != here.sandbox
            if not (new or everyone or endpoint_id in self._suspects):
                continue
            if new:
                self._forget(endpoint_id)
                self._known[endpoint_id] = here.sandbox
                self._watch(endpoint_id, here.sandbox)
            self._suspects.discard(endpoint_id)
            if not self._alive(here.sandbox):
                if endpoint_id not in self.lost:
                    log.info("sandbox lost endpoint=%s sandbox=%s", here.id, here.sandbox.path)
                    self.lost.add(endpoint_id)
                    self._dirty.add(here.network_id)
                self._tell(endpoint_id)

    def take_dirty(self) -> set[str]:
        """Networks that lost an endpoint since the last call."""
        taken, self._dirty = self._dirty, set()
        return taken

    def close(self) -> None:
        """Stops watching."""
        for endpoint_id in tuple(self._known):
            self._forget(endpoint_id)
        for teller in self._tellers.values():
            teller.cancel()

    def _watch(self, endpoint_id: str, sandbox: Sandbox) -> None:
        if sandbox.pid is None:
            return
        try:
            pidfd = os.pidfd_open(sandbox.pid)
        except OSError:
            # Gone already, which the check that follows finds; or too many descriptors are open,
            # and then the full comparisons have to do.
            return
        self._pidfds[endpoint_id] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, endpoint_id)

    def _ended(self, endpoint_id: str) -> None:
        self._unwatch(endpoint_id)
        self._suspects.add(endpoint_id)
        self._changed()

    def _unwatch(self, endpoint_id: str) -> None:
        pidfd = self._pidfds.pop(endpoint_id, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _forget(self, endpoint_id: str) -> None:
        self._unwatch(endpoint_id)
        self._known.pop(endpoint_id, None)
        self._suspects.discard(endpoint_id)
        self.lost.discard(endpoint_id)

    def _tell(self, endpoint_id: str) -> None:
        """Calls the hook in a task of its own, one at a time for an endpoint."""
        if self.on_lost is None or endpoint_id in self._tellers:
            return
        teller = asyncio.create_task(self._call(self.on_lost, endpoint_id))
        self._tellers[endpoint_id] = teller
        teller.add_done_callback(lambda _: self._tellers.pop(endpoint_id, None))

    async def _call(self, hook: Callable[[str], Awaitable[None]], endpoint_id: str) -> None:
        try:
            await hook(endpoint_id)
        except DaemonError as error:
            log.warning("lost endpoint not removed yet endpoint=%s cause=%s", endpoint_id, error)
