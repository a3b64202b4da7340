"""How a transaction and its answer look to Consul (`/v1/txn`, `/v1/kv`). Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pyvxlan.daemon.errors import (
    StoreConflictError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv.store import Check, Delete, Item, Presence, Write

HIDDEN = " "
"""What begins a key, below the prefix, that no caller sees: no key of theirs may hold a space."""
CLUSTER_KEY = HIDDEN + "cluster"
"""Holds a random id: a server that was emptied or replaced has none, or another one."""
SESSION_KEYS = HIDDEN + "sessions/"
"""Holds a key for each session that guards transactions; bound to it."""

Verb = dict[str, str | int]
CHANGING = frozenset({"set", "delete", "lock"})
"""A transaction without one of these is a read."""


def to_verbs(
    root: str, checks: Sequence[Check], ops: Sequence[Write | Delete], session_id: str | None
) -> list[Verb]:
    """Translates a transaction; the conditions come first.

    Consul has no verb for "this session lives". `lock` fails without it, so a transaction that
    binds nothing locks a key of the session's own, which changes nothing from the second time on.

    Args:
        root: The prefix of the store's URL, with a slash at its end.
        checks: The conditions.
        ops: The changes.
        session_id: The session that must live, and that bound keys shall belong to.
    """
    verbs: list[Verb] = []
    if session_id and not any(isinstance(op, Write) and op.bound for op in ops):
        own = root + SESSION_KEYS + session_id
        verbs.append({"Verb": "lock", "Key": own, "Session": session_id})
    for check in checks:
        key = root + check.key
        match check.expect:
            case Presence.ABSENT:
                verbs.append({"Verb": "check-not-exists", "Key": key})
            case Presence.PRESENT:
                verbs.append({"Verb": "get", "Key": key})
            case revision:
                verbs.append({"Verb": "check-index", "Key": key, "Index": revision})
    absent = {check.key for check in checks if check.expect is Presence.ABSENT}
    for op in ops:
        key = root + op.key
        # A key keeps its lock when it is set, and nobody else can lock it: so it is made anew.
        if isinstance(op, Delete) or op.key not in absent:
            verbs.append({"Verb": "delete", "Key": key})
        if isinstance(op, Write):
            verb: Verb = {"Verb": "set", "Key": key}
            if op.bound and session_id:
                verb |= {"Verb": "lock", "Session": session_id}
            verbs.append(verb | {"Value": base64.b64encode(op.value).decode()})
    return verbs


def key_path(root: str, key: str, query: str) -> str:
    """Names a key, or all that begin so, in a request's path."""
    return f"/v1/kv/{quote(root + key, safe='/')}?{query}"


def session_request(ttl_s: float) -> bytes:
    """Writes the body of a request for a session.

    No checks: Consul's own of its node can fail while this host and its agent are well. No lock
    delay: the successor of a session that was lost must be able to bind its keys at once.
    """
    wanted = {
        "Name": "pyvxlan",
        "TTL": f"{ttl_s:g}s",
        "Behavior": "delete",
        "LockDelay": "0s",
        "Checks": [],
        "NodeChecks": [],
    }
    return json.dumps(wanted).encode()


def to_body(verbs: Sequence[Verb]) -> bytes:
    """Writes the body of a request to `/v1/txn`."""
    return json.dumps([{"KV": verb} for verb in verbs], separators=(",", ":")).encode()


def refusal(
    body: bytes, verbs: Sequence[Verb], root: str, denied: str
) -> StoreConflictError | StoreUnavailableError | StoreUncertainError:
    """Reads from the answer to a transaction that was not applied (409) why not.

    Consul answers a failed check, a dead session and a lack of rights alike.

    Args:
        body: The answer.
        verbs: What was asked for.
        root: As in `to_verbs`.
        denied: What to say of a lack of rights.
    """
    try:
        first = json.loads(body)["Errors"][0]
        what, verb = str(first["What"]), verbs[first["OpIndex"]]
    except (ValueError, KeyError, IndexError, TypeError):
        return StoreUncertainError(f"conflict that can't be read: {body[:200]!r}")
    key = str(verb["Key"]).removeprefix(root)
    if "Permission denied" in what:
        return StoreDeniedError(f"{denied}: {what}")
    if "lock delay" in what or "lock-delay" in what:
        return StoreUnavailableError(
            f"{key} was bound to a session of another program that asked for a lock delay: {what}"
        )
    return StoreConflictError(_conflict(key, verb, what))


def read_items(body: bytes, root: str) -> Mapping[str, Item]:
    """Reads the answer to a read of `/v1/kv`, by key; leaves out what no caller sees.

    Raises:
        StoreError: It is none.
    """
    try:
        items = [_item(entry, root) for entry in list[Any](json.loads(body))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"answer is none of Consul's: {body[:80]!r}") from error
    return {item.key: item for item in items if item.key and not item.key.startswith(HIDDEN)}


def _conflict(key: str, verb: Verb, what: str) -> str:
    if "invalid session" in what:
        return f"session {verb.get('Session')} has expired"
    match verb["Verb"]:
        case "check-not-exists":
            return f"{key} exists"
        case "get":
            return f"{key} does not exist"
        case "check-index":
            return f"{key} is not at revision {verb['Index']} any more"
        case _:
            return f"{key}: {what}"


def _item(entry: Any, root: str) -> Item:
    key: str = entry["Key"].removeprefix(root)
    value: bytes = base64.b64decode(entry["Value"] or "", validate=True)
    return Item(key, value, int(entry["ModifyIndex"]))
