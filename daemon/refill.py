"""Puts back what is the cluster's and was lost with the store: networks and the `cfg` record.

Every host knows every network, and each could put all of them back at once. They take turns by the
order of their ids: the first one begins, the others follow only if it did not do it. A network that
was removed is not lost: its removal is noted in the store (`gone/`), which one that was deleted by
hand lacks. A host whose knowledge is older than the notes go back puts nothing back but what its
own endpoints need.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Set

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConflictError,
    InUseError,
    NotFoundError,
    StoreConflictError,
    StoreUnavailableError,
)
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.networks import Networks
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

COVERED_S = 24 * 3600.0
"""How far back the notes of removed networks are sure to go."""
SKEW_S = 300.0
"""By how much the clocks of two hosts may differ."""
TURN_S = 0.7
TURNS = 10
"""Hosts that wait for each other; all that come later in the order wait as long as the last."""
AGAIN_S = (0.3, 60.0)
"""Between two attempts to remove a network again that is in use: at first, and at most."""


class Refill:
    """What this host may do for the cluster as a whole.

    Args:
        state: What was known, and what of it the store lacks.
        local: Which networks this host needs, and which cluster it was of.
        membership: Which cluster the store is of.
        networks: The networks in the store.
    """

    def __init__(
        self, state: State, local: LocalRecords, membership: Membership, networks: Networks
    ) -> None:
        self._state = state
        self._local = local
        self._membership = membership
        self._networks = networks
        self._since: dict[str, float] = {}
        """Since when something is to be put back: a network by its id, or all under ""."""
        self._given_up: set[str] = set()
        """Networks that can't be put back; said once."""
        self._again: dict[str, tuple[float, float]] = {}
        """When to remove a network again at the earliest, and how long to wait after that."""
        self._told = ""

    def due(self) -> bool:
        """Whether the store lacks something that this host may put back, or shows too much."""
        return bool(self._lacking() or self._forgotten() or self._returned() or self._lost_config())

    @property
    def returned(self) -> Set[str]:
        """Ids of networks that an old store has brought back, and that are to be removed again."""
        return frozenset() if self._foreign else self._state.returned

    async def refill(self) -> None:
        """Puts back what is missing, if it is this host's turn.

        Raises:
            StoreError: The store failed; try again.
        """
        self._say_cluster()
        if not self.due():
            self._since.pop("", None)
        elif self._our_turn(""):
            await self._put_back()

    async def ensure(self, network_id: str) -> None:
        """Puts back a network that an endpoint of this host is in.

        Raises:
            NotFoundError: It was removed.
            ConflictError: Its name, VNI or subnet belongs to another network by now.
            StoreError: Another host is about to put it back, or the store failed: try again.
        """
        try:
            await self._networks.read(network_id)
        except NotFoundError:
            copy = self._local.networks.get(network_id)
            lost = self._elsewhere or self._covered()
            if copy is None or not lost or network_id in self._state.removed:
                raise
            if not self._our_turn(network_id):
                raise StoreUnavailableError(
                    f"network {copy.name} is about to be put back: try again shortly"
                ) from None
            await self._networks.restore(copy)
        self._since.pop(network_id, None)

    async def reclaim(self) -> None:
        """Claims again what networks have lost, if this host is the first of those that are up.

        Raises:
            StoreError: The store failed; try again.
        """
        if self._membership.host_id == min(self._state.alive, default=""):
            await self._networks.reclaim()

    @property
    def _elsewhere(self) -> bool:
        """Whether the store is of another cluster than this host's records."""
        return self._local.cluster not in {"", self._membership.cluster}

    @property
    def _foreign(self) -> bool:
        """Whether the store was not begun anew, but is that of others, or a restored one."""
        return self._elsewhere and not self._covered()

    def _covered(self) -> bool:
        """Whether a network that the store lacks is surely lost, or else is noted as removed."""
        now_s = time.time()
        left_s = self._state.left_step_s or now_s
        if not self._elsewhere:
            return now_s - left_s < COVERED_S
        created_s = self._membership.created_s
        return left_s - SKEW_S < created_s and now_s - created_s < COVERED_S

    def _lacking(self) -> list[Network]:
        if not self._state.held or not self._covered():
            return []
        return [
            network
            for network in self._state.networks.values()
            if not self._state.recorded(records.network_key(network.id))
            and network.id not in self._state.removed
            and network.id not in self._given_up
        ]

    def _forgotten(self) -> list[str]:
        """Networks of which the store has lost that they were removed."""
        if not self._state.held:
            return []
        return [
            network_id
            for network_id, gone in self._state.removed.items()
            if not self._state.recorded(records.gone_key(network_id))
            and time.time() - gone.at_s < COVERED_S
            and not (self._foreign and self._shown(network_id))
        ]

    def _returned(self) -> list[str]:
        """Networks to be removed again now."""
        now = time.monotonic()
        return [id_ for id_ in self.returned if now >= self._again.get(id_, (0, 0))[0]]

    def _shown(self, network_id: str) -> bool:
        return self._state.recorded(records.network_key(network_id))

    def _lost_config(self) -> bytes | None:
        return self._state.lost_config if self._elsewhere and self._covered() else None

    def _our_turn(self, what: str) -> bool:
        """Whether those before this host had the time to put something back.

        Right after the store was lost, only some have registered again; but all were known.
        """
        now, me = time.monotonic(), self._membership.host_id
        turn = min(sum(host_id < me for host_id in self._state.alive), TURNS)
        if not turn and any(host_id < me for host_id in self._state.hosts):
            turn = 1
        return now - self._since.setdefault(what, now) >= TURN_S * turn

    async def _put_back(self) -> None:
        for network_id in self._forgotten():
            await self._networks.mark_gone(network_id, self._state.removed[network_id])
        for network_id in self._returned():
            await self._remove_again(network_id)
        for network in self._lacking():
            try:
                await self._networks.restore(network)
            except (StoreConflictError, NotFoundError):
                continue  # Another host was faster, or the note of its removal is on its way here.
            except ConflictError as error:
                if self.returned:
                    continue  # What is in its way is about to go.
                self._given_up.add(network.id)
                log.error("network not put back network=%s cause=%s", network.id, error)
        if config := self._lost_config():
            await self._networks.restore_config(config)
            log.warning("cluster configuration put back")

    async def _remove_again(self, network_id: str) -> None:
        try:
            await self._networks.remove(network_id)
        except (InUseError, StoreConflictError) as error:
            # Its endpoints are as old as itself: their hosts are about to withdraw them.
            wait_s = self._again.get(network_id, (0.0, AGAIN_S[0]))[1]
            self._again[network_id] = (time.monotonic() + wait_s, min(2 * wait_s, AGAIN_S[1]))
            log.warning("removed network is back network=%s cause=%s", network_id, error)
        except NotFoundError:
            return
        else:
            log.warning("removed network was back, removed again network=%s", network_id)

    def _say_cluster(self) -> None:
        """Says once what became of a store whose cluster is not the one that it was."""
        cluster = self._membership.cluster
        if not self._elsewhere or self._told == cluster:
            return
        self._told = cluster
        if not self._foreign:
            log.error(
                "store was lost and begun anew cluster=%s was=%s: hosts publish what they have",
                cluster,
                self._local.cluster,
            )
        else:
            log.error(
                "store is of another cluster cluster=%s was=%s: if it was not restored or changed "
                "on purpose, point --store at the right one; this host's endpoints are published "
                "there",
                cluster,
                self._local.cluster,
            )
