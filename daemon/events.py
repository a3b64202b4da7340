"""What has changed on this host and in its cluster: the last thousand events, and their numbers.

One list for `pyvxlan events`, the web page and the metrics. It begins anew with the daemon; the
log has more. Names in it come from the store: whoever shows one takes it as plain text.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

KEPT = 1000
KINDS = (
    "daemon_started",
    "network_added",
    "network_removed",
    "network_refused",
    "name_refused",
    "endpoint_added",
    "endpoint_removed",
    "host_up",
    "host_down",
    "host_removed",
    "store_lost",
    "store_back",
    "repaired",
    "forwarder_replaced",
    "tunnel_lost",
    "tunnel_back",
    "tunnel_narrow",
    "tunnel_wide",
)
"""Everything that is noted. Endpoints are those of networks on this host."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `number` is when, in milliseconds since the epoch, and no other event has it."""

    number: int
    kind: str
    text: str
    """What it happened to, for people."""


class Events:
    """Keeps the last `KEPT` events. Each daemon has one; who is given none keeps its own.

    Args:
        clock: The wall clock, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._counts = dict.fromkeys(KINDS, 0)
        self._last = 0

    @property
    def counts(self) -> Mapping[str, int]:
        """How many there were of each kind, forgotten ones too."""
        return self._counts

    def note(self, kind: str, text: str) -> None:
        """Notes an event that happens now.

        Raises:
            KeyError: `kind` is none of `KINDS`.
        """
        self._counts[kind] += 1
        # A clock that is set back makes no number less than the one before.
        self._last = max(self._last + 1, round(self._clock() * 1000))
        self._kept.append(Event(self._last, kind, text))

    def after(self, number: int) -> list[Event]:
        """Gives those kept whose number is greater, oldest first."""
        found: list[Event] = []
        for event in reversed(self._kept):
            if event.number <= number:
                break
            found.append(event)
        return found[::-1]
