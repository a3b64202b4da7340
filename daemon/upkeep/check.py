"""One look at a store: its servers, what this host may do there, and whether the records fit.

What is wrong is a finding; only a URL that can't be used is an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyvxlan.daemon import records
from pyvxlan.daemon.clusterstore import probe
from pyvxlan.daemon.errors import InvalidError, StoreConflictError, StoreError
from pyvxlan.daemon.kv import Item, Store
from pyvxlan.daemon.kv.health import Finding, Health, MemberHealth
from pyvxlan.daemon.kv.kinds import misnamed
from pyvxlan.daemon.kv.url import StoreUrl, parse_url
from pyvxlan.daemon.records import Phase, Transition
from pyvxlan.daemon.upkeep import integrity
from pyvxlan.daemon.upkeep.content import open_existing, read_all

log = logging.getLogger(__name__)

TIMEOUT_S = 15.0
"""For each of the looks; a store that answers needs a small part of it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a store."""

    url: str
    health: Health
    cluster: str
    """Id of the overlay's cluster; empty if there is none."""
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return all(finding.level != "error" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Gives it as JSON can hold it."""
        return {
            "store": self.url,
            "kind": self.health.kind,
            "cluster": self.cluster,
            "server_cluster": self.health.cluster,
            "good": self.good,
            "members": [asdict(member) for member in self.health.members],
            "findings": [asdict(finding) for finding in self.findings],
        }


async def check(text: str) -> Report:
    """Looks at everything that can be looked at now.

    Raises:
        ConfigError: The URL can't be used, or what it names is not there.
    """
    url = parse_url(text)
    try:
        store = await open_existing(text)
    except StoreError as error:
        member = MemberHealth(str(url.path or url), str(error))
        return Report(text, Health(url.kind, (member,)), "", (_not_serving(str(error)),))
    try:
        return await _look(text, url, store)
    finally:
        await store.close()


async def warn(store: Store, text: str) -> None:
    """Logs what `check` would find wrong with the servers of the store at a URL; looks once."""
    health = await _health(store, text)
    for finding in (_connection(health), *health.findings):
        if finding.level != "ok":
            level = logging.ERROR if finding.level == "error" else logging.WARNING
            log.log(level, "store check what=%s cause=%s", finding.what, finding.text)


async def _health(store: Store, text: str) -> Health:
    url = parse_url(text)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            health = await store.health()
    except TimeoutError:
        why = f"no answer within {TIMEOUT_S:g} s"
        return Health(url.kind, (MemberHealth(text, why),))
    if all(not member.error for member in health.members):
        return health
    told = await misnamed(url)
    members = (replace(m, error=told.get(m.address, m.error)) for m in health.members)
    return replace(health, members=tuple(members))


async def _look(text: str, url: StoreUrl, store: Store) -> Report:
    health = await _health(store, text)
    findings = [_connection(health), *health.findings]
    if all(finding.what != "clock" for finding in findings):
        findings.append(_clock(url))
    cluster = ""
    if any(not member.error for member in health.members):
        findings.append(await _permissions(url, store))
        found, cluster = await _content(url, store)
        findings += found
    return Report(text, health, cluster, tuple(findings))


def _connection(health: Health) -> Finding:
    failing = [member for member in health.members if member.error]
    serving = len(health.members) - len(failing)
    text = f"{serving} of {len(health.members)} members serve"
    if not failing:
        return Finding("ok", "connection", text)
    reasons = "; ".join(f"{member.address}: {member.error}" for member in failing)
    if serving:
        remedy = "the store goes on as long as most of its servers do; repair those"
        return Finding("warning", "connection", f"{text}: {reasons}; {remedy}")
    return _not_serving(reasons)


def _not_serving(reasons: str) -> Finding:
    return Finding("error", "connection", f"no member serves: {reasons}")


def _clock(url: StoreUrl) -> Finding:
    """Says what an unknown clock means: a store that tells its time says so in its health."""
    if url.path:
        return Finding("ok", "clock", "the store's is this machine's")
    return Finding(
        "ok",
        "clock",
        "not compared, as the store does not tell its own; sessions and grace times run on steady "
        "clocks, so that only certificates depend on the time of day",
    )


async def _permissions(url: StoreUrl, store: Store) -> Finding:
    where = url.path or f"/{url.prefix}"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await store.get(records.META)
            await probe(store)
    except (StoreError, TimeoutError) as error:
        why = str(error) or f"no answer within {TIMEOUT_S:g} s"
        return Finding("error", "permissions", f"below {where}: {why}")
    return Finding("ok", "permissions", f"reads, writes and sessions work below {where}")


async def _content(url: StoreUrl, store: Store) -> tuple[list[Finding], str]:
    """Looks at `meta` and at how the records fit each other; gives the cluster's id too."""
    try:
        async with asyncio.timeout(4 * TIMEOUT_S):
            items = await read_all(store, kind=url.kind)
    except StoreConflictError as error:
        return [Finding("warning", "records", f"not compared: {error}")], ""
    except (StoreError, TimeoutError) as error:
        why = str(error) or f"no answer within {4 * TIMEOUT_S:g} s"
        return [Finding("error", "records", f"can't be read: {why}")], ""
    found = integrity.examine({key: item.value for key, item in items.items()})
    schema, cluster = _schema(items)
    return [*schema, *found], cluster


def _schema(items: Mapping[str, Item]) -> tuple[list[Finding], str]:
    item = items.get(records.META)
    if item is None:
        if not items:
            return [Finding("ok", "schema", "no cluster has used this store yet")], ""
        text = "there are records, and no meta: restore it, or empty the prefix"
        return [Finding("error", "schema", text)], ""
    try:
        meta = records.parse_meta(item.value)
    except InvalidError as error:
        return [Finding("error", "schema", f"record {records.META}: {error}")], ""
    text = f"version {records.VERSION}, readers from {meta.min_reader} on; cluster {meta.cluster}"
    found = [Finding("ok", "schema", text)]
    if meta.transition:
        found.append(_transition(meta.transition, kept=records.MOVE_KEEPER in items))
    return found, meta.cluster


def _transition(transition: Transition, *, kept: bool) -> Finding:
    match transition.phase:
        case Phase.FILLING:
            text = (
                "the store is being filled and nobody may use it yet: if nobody is at it, run the "
                "same pyvxlan store restore or migrate again"
            )
            return Finding("error", "transition", text)
        case Phase.MOVED:
            text = (
                f"the cluster has moved to {transition.to}: set the hosts' store to that; this one "
                "may go"
            )
            return Finding("warning", "transition", text)
        case Phase.MOVING | Phase.FROZEN:
            state = "is being moved" if kept else "was about to be moved, and whoever did it left"
            text = (
                f"the cluster {state} to {transition.to}: run pyvxlan store migrate again to go "
                "on, or with --abort to end it"
            )
            return Finding("warning", "transition", text)
