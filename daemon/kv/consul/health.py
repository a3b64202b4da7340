"""What `health` tells of Consul: its agents, its servers, and what the token may do."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from ipaddress import ip_address

from pyvxlan.daemon.errors import StoreError
from pyvxlan.daemon.kv.consul.agents import Agents, Reply
from pyvxlan.daemon.kv.consul.verbs import (
    CLUSTER_KEY,
    HIDDEN,
    Verb,
    key_path,
    refusal,
    session_request,
    to_body,
)
from pyvxlan.daemon.kv.health import Finding, Health, MemberHealth
from pyvxlan.daemon.kv.url import Member, StoreUrl

LOOK_S = 8.0
"""Enough for an agent without a leader to say so."""
VERSION_MIN = (1, 11)
"""Older ones don't say when a token may not see keys, which then look deleted."""


async def look(agents: Agents, url: StoreUrl) -> Health:
    """Looks at every agent, the servers behind them, and the token's rights. Never raises."""
    looks = await asyncio.gather(*(_look_at(agents, url, member) for member in url.members))
    members = tuple(member for member, _ in looks)
    replies = [reply for _, reply in looks if reply is not None]
    if not replies:
        return Health("consul", members)
    findings = [
        await _servers(agents),
        await _key_rights(agents, url),
        await _session_rights(agents),
        *_versions(members),
        *_access(replies),
        *_secrecy(url),
    ]
    cluster = next(
        (reply.body.decode(errors="replace") for reply in replies if reply.status == 200), ""
    )
    return Health("consul", members, tuple(findings), cluster)


async def _look_at(
    agents: Agents, url: StoreUrl, member: Member
) -> tuple[MemberHealth, Reply | None]:
    """Returns what one agent is like, and its answer to a question for our prefix's id."""
    address = f"{member[0]}:{member[1]}"
    asked_at = time.monotonic()
    try:
        path = key_path(f"{url.prefix}/", CLUSTER_KEY, "raw&consistent")
        reply = await agents.ask_member(member, "GET", path, timeout_s=LOOK_S)
    except StoreError as error:
        return MemberHealth(address, str(error)), None
    latency_s = time.monotonic() - asked_at
    if not reply.index:
        return MemberHealth(address, f"what answers at {address} is not Consul"), None
    try:
        about = await agents.ask_member(member, "GET", "/v1/agent/self")
        version = str(json.loads(about.body)["Config"]["Version"])
    except (StoreError, ValueError, KeyError, TypeError):
        version = ""  # needs a right of its own, agent:read, which nothing else needs
    return MemberHealth(address, "", version, latency_s), reply


async def _servers(agents: Agents) -> Finding:
    try:
        reply = await agents.ask("GET", "/v1/status/peers")
        servers = [str(peer) for peer in json.loads(reply.body)]
    except (StoreError, ValueError, TypeError) as error:
        return Finding("error", "servers", f"the servers can't be listed: {error}")
    text = f"{len(servers)} in the cluster: {', '.join(servers)}"
    if len(servers) == 1:
        return Finding("warning", "servers", f"{text}; nothing takes over from it: run 3 or 5")
    if len(servers) % 2 == 0:
        return Finding("warning", "servers", f"{text}; an even number bears no more: run 3 or 5")
    return Finding("ok", "servers", text)


async def _key_rights(agents: Agents, url: StoreUrl) -> Finding:
    """Asks for what needs the right to write, in a transaction that writes nothing."""
    root = f"{url.prefix}/"
    verbs: list[Verb] = [{"Verb": "check-not-exists", "Key": root + HIDDEN + "none"}]
    try:
        reply = await agents.ask("PUT", "/v1/txn?consistent", to_body(verbs))
        if reply.status != 200:
            raise refusal(reply.body, verbs, root, agents.denied)
    except StoreError as error:
        return Finding("error", "permissions", str(error))
    return Finding("ok", "permissions", f"keys below {root} may be read and written")


async def _session_rights(agents: Agents) -> Finding:
    """Makes a session and ends it, which is also a write that has to be agreed on."""
    try:
        reply = await agents.ask("PUT", "/v1/session/create", session_request(10))
        session_id = str(json.loads(reply.body)["ID"])
        await agents.ask("PUT", f"/v1/session/destroy/{session_id}")
    except (StoreError, ValueError, KeyError, TypeError) as error:
        return Finding("error", "sessions", f"no session can be made: {error}")
    return Finding("ok", "sessions", "sessions may be made and ended")


def _versions(members: Sequence[MemberHealth]) -> Sequence[Finding]:
    found = {member.version for member in members if member.version}
    old = [version for version in sorted(found) if _numbers(version) < VERSION_MIN]
    needed = ".".join(map(str, VERSION_MIN))
    if old:
        text = (
            f"Consul {', '.join(old)} does not say when a token may not see keys, which then look "
            f"deleted: use {needed} or later"
        )
        return (Finding("warning", "version", text),)
    if not found:
        text = 'not shown to this token; its policy may hold agent_prefix "" { policy = "read" }'
        return (Finding("ok", "version", text),)
    return (Finding("ok", "version", f"Consul {', '.join(sorted(found))}"),)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _access(replies: Sequence[Reply]) -> Sequence[Finding]:
    if not any(reply.open_to_all for reply in replies):
        return ()
    text = (
        "whoever reaches an agent may change every key: switch on Consul's ACLs "
        '(acl { enabled = true, default_policy = "deny" }) and name a token with token-file=PATH'
    )
    return (Finding("warning", "access", text),)


def _secrecy(url: StoreUrl) -> Sequence[Finding]:
    open_hosts = [host for host, _ in url.members if not _is_local(host)]
    if url.tls or url.token_file is None or not open_hosts:
        return ()
    text = f"the token is sent in clear to {', '.join(open_hosts)}: use TLS (ca=PATH)"
    return (Finding("warning", "tls", text),)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
