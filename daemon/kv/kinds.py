"""Which kind of store answers at an address, for whoever named another kind in the URL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ssl import SSLContext

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.tls import client_context
from pyvxlan.daemon.kv.url import Member, StoreUrl, member_name

LOOK_S = 1.0
"""How long one look at a server may take."""
ANSWER_MAX_BYTES = 4096
_HTTP = "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"
SIGNS: Mapping[str, tuple[str, str]] = {
    "etcd": (_HTTP.format(path="/version", host="etcd"), '"etcdserver"'),
    "consul": (_HTTP.format(path="/v1/kv/?keys&separator=/", host="consul"), "X-Consul-"),
    "zk": ("srvr", "Zookeeper version:"),
}
"""By kind: what to send to a server, and what only a server of that kind says then."""
NAMES: Mapping[str, str] = {"etcd": "etcd", "consul": "Consul", "zk": "ZooKeeper"}


async def misnamed(url: StoreUrl) -> Mapping[str, str]:
    """Finds the members of a URL that are of another kind than it says.

    Returns:
        By member, as the URL names it: what it is, and the remedy. Never raises; one that can't be
        asked is left out.
    """
    try:
        context = client_context(url)
    except ConfigError:
        return {}
    kinds = await asyncio.gather(*(_kind_at(member, context) for member in url.members))
    return {
        member_name(member): (
            f"is {NAMES[kind]}, not {NAMES[url.server]}: write {kind}:// for {url.kind}://, or "
            "the right address"
        )
        for member, kind in zip(url.members, kinds, strict=True)
        if kind not in {"", url.server}
    }


async def _kind_at(member: Member, context: SSLContext | None) -> str:
    looks = [asyncio.create_task(_is(kind, member, context)) for kind in SIGNS]
    try:
        for look in asyncio.as_completed(looks):
            if kind := await look:
                return kind
    finally:
        for look in looks:
            look.cancel()
    return ""


async def _is(kind: str, member: Member, context: SSLContext | None) -> str:
    """Asks a server what only one of a kind answers; gives the kind, or nothing."""
    host, port = member
    question, sign = SIGNS[kind]
    answer = b""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=host if context else None
            )
            writer.write(question.encode())
            while len(answer) < ANSWER_MAX_BYTES and (more := await reader.read(ANSWER_MAX_BYTES)):
                answer += more
                if sign.encode() in answer:
                    return kind
    except (OSError, TimeoutError):
        return ""
    finally:
        if writer:
            writer.close()
    return ""
