"""`Lease`: a session as its owner holds it; its store renews it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

RENEWALS = 3
"""How often a lease is renewed within its time to live."""


class Lease:
    """A session that its store renews; see `Session`.

    Args:
        ttl_s: Seconds that it lives after a renewal.
        end: Ends it in the store, with its keys.
        session_id: Its id in the store; a random one if left out.
    """

    def __init__(
        self,
        ttl_s: float,
        end: Callable[[Lease], Awaitable[None]],
        *,
        session_id: str | None = None,
    ) -> None:
        self.ttl_s = ttl_s
        self._id = session_id or secrets.token_hex(16)
        self._end = end
        self._valid_until = 0.0
        self._renew_at = 0.0
        self._lost = asyncio.Event()
        self._ended = False

    @property
    def id(self) -> str:
        """The session's own id; never reused."""
        return self._id

    @property
    def valid_until(self) -> float:
        """Deadline on the monotonic clock up to which the session surely lives."""
        return self._valid_until

    def due(self, now: float) -> bool:
        """Whether the store should renew it, by the store's own clock."""
        return not self._lost.is_set() and now >= self._renew_at

    def renewed(self, now: float, asked_at: float) -> None:
        """Notes a renewal that was asked for at `asked_at` on the monotonic clock.

        `now` is the store's clock at that time.
        """
        self._renew_at = now + self.ttl_s / RENEWALS
        self._valid_until = asked_at + self.ttl_s

    def mark_lost(self) -> None:
        """Notes that the store has expired it."""
        self._valid_until = min(self._valid_until, time.monotonic())
        self._lost.set()

    async def lost(self) -> None:
        """Returns when the session is known to have expired."""
        await self._lost.wait()

    async def close(self) -> None:
        """Ends the session and deletes its keys. May be called twice."""
        if not self._ended:
            self._ended = True
            await self._end(self)
            self.mark_lost()
