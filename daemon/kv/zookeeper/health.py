"""The condition of a ZooKeeper: each server by itself, and what this client may do."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from kazoo.exceptions import NoNodeError
from kazoo.protocol.serialization import Create, Exists, GetChildren, Sync
from kazoo.protocol.serialization import Delete as DeleteNode

from pyvxlan.daemon.errors import StoreError
from pyvxlan.daemon.kv.health import Finding, Health, MemberHealth
from pyvxlan.daemon.kv.tls import why_unreachable
from pyvxlan.daemon.kv.url import Member, member_name
from pyvxlan.daemon.kv.watching import SESSION_TTL_MIN_S
from pyvxlan.daemon.kv.zookeeper.access import Access, readable, refused
from pyvxlan.daemon.kv.zookeeper.layout import Layout
from pyvxlan.daemon.kv.zookeeper.link import Link, SessionLostError
from pyvxlan.daemon.kv.zookeeper.transaction import PERSISTENT, Operation

LOOK_S = 2.0
"""How long one look at one server may take."""
LONGEST_S = 3600.0
"""What is asked for to learn the longest session that a server grants."""
VERSION_MIN = (3, 5)
"""Older ones are kept up by nobody; none of them was tried."""


async def look(link: Link, layout: Layout, session_s: float) -> Health:
    """Looks at every server that the URL names, and tries what the store has to do.

    `session_s` is the longest time to live that sessions are usually opened with.
    """
    access = link.access
    looks = await asyncio.gather(
        *(_look_at(access, member, session_s) for member in access.members)
    )
    findings = [finding for _, found in looks for finding in found]
    if any(not member.error for member, _ in looks):
        findings.append(await _permissions(link, layout))
    if access.user and not access.tls:
        findings.append(
            Finding(
                "warning",
                "password",
                f"the password of user {access.user} is sent in the clear: use a port with TLS "
                "and ?tls=true",
            )
        )
    return Health("zk", tuple(member for member, _ in looks), tuple(findings))


async def _look_at(
    access: Access, member: Member, session_s: float
) -> tuple[MemberHealth, Sequence[Finding]]:
    name = member_name(member)
    alone = replace(access, members=(member,))
    link = Link(alone, LONGEST_S, lambda: None, lasting=False)
    link.start()
    try:
        if not await link.settled(LOOK_S):
            why = await why_unreachable(member, access.tls, certificate=access.certificate)
            return MemberHealth(name, why), ()
        asked_at = time.monotonic()
        await link.ask(Sync("/"), Exists("/", None))
        latency_s = time.monotonic() - asked_at
        longest_s = link.granted_s
        await link.end()
    except (StoreError, SessionLostError) as error:
        return MemberHealth(name, str(error) or link.reason), ()
    finally:
        await link.abandon()
    version, finding = await _version(access, member)
    return (
        MemberHealth(name, version=version, latency_s=latency_s),
        (finding, _sessions(name, longest_s, session_s)),
    )


async def _version(access: Access, member: Member) -> tuple[str, Finding]:
    """Asks a server for its version and its part in the ensemble."""
    name = member_name(member)
    try:
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(*member, ssl=access.tls)
            writer.write(b"srvr")
            answer = (await reader.read(8192)).decode(errors="replace")
            writer.close()
    except OSError as error:
        return "", Finding("warning", "version", f"{name} does not answer srvr: {error}")
    version = re.search(r"version: (\d+)\.(\d+)(\.\d+)?", answer)
    mode = re.search(r"^Mode: (\S+)", answer, re.MULTILINE)
    if version is None or mode is None:
        return "", Finding(
            "warning",
            "version",
            f"{name} does not tell its version: put srvr into 4lw.commands.whitelist of zoo.cfg",
        )
    text = version[0].removeprefix("version: ")
    if (int(version[1]), int(version[2])) < VERSION_MIN:
        oldest = ".".join(map(str, VERSION_MIN))
        return text, Finding(
            "warning",
            "version",
            f"{name} is ZooKeeper {text}: versions before {oldest} are not kept up: upgrade it",
        )
    return text, Finding("ok", "version", f"{name} is ZooKeeper {text}, {mode[1]}")


def _sessions(name: str, longest_s: float, session_s: float) -> Finding:
    text = f"{name} grants sessions of up to {longest_s:g} s"
    if longest_s >= session_s:
        return Finding("ok", "sessions", text)
    return Finding(
        "error" if longest_s < SESSION_TTL_MIN_S else "warning",
        "sessions",
        f"{text}: set maxSessionTimeout of its zoo.cfg to {session_s * 1000:g} at least",
    )


async def _permissions(link: Link, layout: Layout) -> Finding:
    """Reads the prefix and writes into it, and takes back in the same step what it wrote."""
    access = link.access
    parts = layout.root.strip("/").split("/")
    ancestors = ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]
    try:
        *stats, children = await link.ask(
            *(Exists(path, None) for path in ancestors), GetChildren(layout.root, None)
        )
        if not isinstance(children, NoNodeError):
            readable(children, access, layout.root)
        missing = [path for path, stat in zip(ancestors, stats, strict=True) if stat is None]
        paths = [*missing, f"{layout.root}/probe-{secrets.token_hex(8)}"]
        operations: list[Operation] = [Create(path, b"", access.acl, PERSISTENT) for path in paths]
        operations += [DeleteNode(path, -1) for path in reversed(paths)]
        failure = await link.commit(operations)
        if failure:
            raise refused(failure.error, access, failure.path)
    except StoreError as error:
        return Finding("error", "permissions", str(error))
    return Finding("ok", "permissions", f"{layout.root} can be read and written")
