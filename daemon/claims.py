"""Claims that were deleted by hand: found, and put back for their owners (docs/schema.md).

Nobody watches claims. Each owner's keeper looks now and then whether they are all there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import InvalidError, StoreConflictError
from pyvxlan.daemon.kv import ABSENT, PRESENT, Check, Item, Store, Write

log = logging.getLogger(__name__)

LOOK_MAX = 30
"""Keys that one transaction looks at."""


async def lacking(store: Store, claims: Mapping[str, Sequence[str]]) -> list[str]:
    """Finds owners whose claims may not all be there, by the keys of the owners' records.

    Raises:
        StoreError: The store does not answer.
    """
    pairs = [(owner, claim) for owner, of_one in claims.items() for claim in of_one]
    found: dict[str, None] = {}
    for start in range(0, len(pairs), LOOK_MAX):
        batch = pairs[start : start + LOOK_MAX]
        try:
            await store.txn([Check(claim, PRESENT) for _, claim in batch], [])
        except StoreConflictError:
            found |= dict.fromkeys(owner for owner, _ in batch)
    return list(found)


async def put_back(store: Store, owner: Item, claims: Sequence[str]) -> Mapping[str, str]:
    """Writes what is lacking of an owner's claims; gives who has those that are another's.

    Args:
        store: The store.
        owner: The owner's record, whose key ends with its id.
        claims: Keys that should say that id.

    Returns:
        Ids of other owners, by key.

    Raises:
        StoreConflictError: The record or a claim was changed just now; look again.
        StoreError: The store does not answer.
    """
    id_ = owner.key.rpartition("/")[2]
    others = {}
    for claim in claims:
        item = await store.get(claim)
        if item is None:
            await store.txn(
                [Check(owner.key, owner.revision), Check(claim, ABSENT)],
                [Write(claim, records.emit(id_))],
            )
            log.warning("claim put back key=%s owner=%s", claim, id_)
            continue
        with contextlib.suppress(InvalidError):  # `store check` tells of it.
            if (other := records.parse_claim(item.value)) != id_:
                others[claim] = other
    return others
