"""Requests to Consul's agents: one at a time, the next one when it fails, each error explained."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from weakref import WeakSet

import aiohttp
from yarl import URL

from pyvxlan.daemon.errors import (
    ConfigError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv.tls import client_context, why_unreachable
from pyvxlan.daemon.kv.url import Member, StoreUrl, read_secret

log = logging.getLogger(__name__)

CONNECT_S = 1.0
ANSWER_S = 2.5
"""How long one agent may take; less than `BoundedStore` allows, so that the next one is asked."""
GOODBYE_S = 0.05
"""For the ends of TLS connections, which aiohttp does not wait for."""
EXPLAIN_S = 0.4
"""How long an agent that took too long may take to say whether it knows a leader. Without one it
holds a request for 7 s before it says so (`rpc_hold_timeout`)."""
LEADERLESS = "knows no leader: do most servers run, and can it reach them?"
NOT_APPLIED = ("No cluster leader", "No known Consul servers")
"""What an agent says that could hand a request to nobody."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that means something: 200, 404 (there is none) or 409 (not applied)."""

    status: int
    body: bytes
    index: int
    """Of the state that was read, for the next blocking query; 0 if the answer has none."""
    filtered: bool
    """Whether the token may not see all of it."""
    open_to_all: bool
    """Whether whoever has no token may do everything."""


class _BrokenError(Exception):
    """The connection broke after the request had been sent, at least in part."""


class Agents:
    """The agents that a URL names.

    Args:
        url: The store's URL.
        moved: Called when another agent is asked from now on.

    Raises:
        ConfigError: The token or a certificate can't be used.
    """

    def __init__(self, url: StoreUrl, moved: Callable[[], None]) -> None:
        self._url = url
        self._moved = moved
        self._members = url.members
        self._current = 0
        self._secrets = _Secrets(url)
        self._sockets: WeakSet[socket.socket] = WeakSet()
        # No limit: each watched prefix holds a connection, and a request must not wait for one.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=self._socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_never_twice,),
        )

    @property
    def denied(self) -> str:
        """What to say when the token does not suffice."""
        if self._url.token_file is None:
            return (
                f"Consul's ACLs let nobody without a token use {self._url.prefix}/: name its file "
                "with token-file=PATH"
            )
        return (
            f"the token in {self._url.token_file} does not suffice: its policy must hold "
            f'key_prefix "{self._url.prefix}/" {{ policy = "write" }} and '
            'session_prefix "" { policy = "write" }'
        )

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        once: bool = False,
        timeout_s: float = ANSWER_S,
    ) -> Reply:
        """Sends a request to the agent in use, or to the next one that can be reached.

        Args:
            method: GET or PUT.
            path: Path and query, escaped.
            body: JSON.
            once: Whether it must not arrive twice, so that no other agent is asked when it is
                unclear whether one has it.
            timeout_s: How long one agent may take.

        Raises:
            StoreUnavailableError: No agent could do it; nothing was changed.
            StoreUncertainError: It may have been done; only if `once`.
            StoreError: It was refused for what it says.
        """
        failures: dict[Member, str] = {}
        for _ in self._members:
            member = self._members[self._current]
            try:
                return await self.ask_member(
                    member, method, path, body, once=once, timeout_s=timeout_s
                )
            except StoreUncertainError:
                self._leave(member)
                raise
            except StoreUnavailableError as error:
                failures[member] = str(error)
                self._leave(member)
        if len(failures) == 1:
            raise StoreUnavailableError(next(iter(failures.values())))
        raise StoreUnavailableError(f"no Consul agent serves: {'; '.join(failures.values())}")

    async def ask_member(
        self,
        member: Member,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        once: bool = False,
        timeout_s: float = ANSWER_S,
    ) -> Reply:
        """Sends a request to one agent; see `ask`."""
        if self._http.closed:
            raise StoreUnavailableError(f"store {self._url} is closed")
        name = f"Consul agent {_authority(member)}"
        token, context = self._secrets.current()
        lost = StoreUncertainError if once else StoreUnavailableError
        url = URL(f"{'https' if context else 'http'}://{_authority(member)}{path}", encoded=True)
        try:
            async with self._http.request(
                method,
                url,
                data=body,
                headers={"X-Consul-Token": token} if token else {},
                ssl=context or True,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise StoreUnavailableError(
                f"{name} {await why_unreachable(member, context)}"
            ) from error
        except TimeoutError as error:
            why = await self._why_silent(member, timeout_s)
            raise lost(f"{name} {why}") from error
        except (aiohttp.ClientError, _BrokenError) as error:
            why = await why_unreachable(member, context) if context else "broke the connection"
            raise lost(f"{name} {why} ({error})") from error
        return self._judge(name, response, answer, lost)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()
        # A TLS connection whose request was interrupted waits for the other side's goodbye, which
        # comes when the query has ended there.
        for open_socket in [each for each in self._sockets if each.fileno() != -1]:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        if self._url.tls:
            await asyncio.sleep(GOODBYE_S)

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        made = socket.socket(*info[:3])
        self._sockets.add(made)
        return made

    async def _why_silent(self, member: Member, timeout_s: float) -> str:
        silence = f"gave no answer in {timeout_s:g} s"
        if timeout_s <= EXPLAIN_S:
            return silence
        try:
            reply = await self.ask_member(member, "GET", "/v1/status/leader", timeout_s=EXPLAIN_S)
        except StoreError:
            return silence
        return LEADERLESS if reply.body.strip() == b'""' else silence

    def _leave(self, member: Member) -> None:
        """Turns to the next agent, unless somebody has done so already."""
        if len(self._members) > 1 and self._members[self._current] == member:
            self._current = (self._current + 1) % len(self._members)
            self._moved()

    def _judge(
        self, name: str, response: aiohttp.ClientResponse, answer: bytes, lost: type[StoreError]
    ) -> Reply:
        text = answer[:300].decode(errors="replace").strip()
        match response.status:
            case 200 | 404 | 409:
                headers = response.headers
                return Reply(
                    response.status,
                    answer,
                    int(headers.get("X-Consul-Index", 0)),
                    headers.get("X-Consul-Results-Filtered-By-Acls") == "true",
                    headers.get("X-Consul-Default-Acl-Policy") == "allow",
                )
            case 403:
                raise StoreDeniedError(f"{self.denied} ({name}: {text})")
            case 429:
                raise StoreUnavailableError(f"{name} takes no more requests just now: {text}")
            case 413:
                raise StoreError(f"{name} takes no value or transaction of that size: {text}")
            case 400 if "HTTPS server" in text:
                raise StoreUnavailableError(
                    f"{name} speaks TLS: name its authority with ca=PATH, or write tls=true"
                )
            case status if status >= 500:
                if any(words in text for words in NOT_APPLIED):
                    raise StoreUnavailableError(f"{name} {LEADERLESS}")
                raise lost(f"{name} failed: {text} ({status})")
            case status:
                raise StoreError(f"{name} refuses the request: {text} ({status})")


class _Secrets:
    """The token and the certificates, read anew when their files change."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        paths = (url.token_file, url.ca, url.cert, url.key)
        self._paths = [path for path in paths if path is not None]
        self._seen = self._stamps()
        self._token, self._context = self._read()

    def current(self) -> tuple[str, SSLContext | None]:
        stamps = self._stamps()
        if stamps != self._seen:
            try:
                self._token, self._context = self._read()
                log.info("token and certificates read anew store=%s", self._url)
            except ConfigError as error:
                log.warning("token and certificates kept store=%s cause=%s", self._url, error)
            self._seen = stamps
        return self._token, self._context

    def _read(self) -> tuple[str, SSLContext | None]:
        path = self._url.token_file
        return read_secret(path, "token") if path else "", client_context(self._url)

    def _stamps(self) -> list[tuple[Path, int, int]]:
        stamps = []
        for path in self._paths:
            with contextlib.suppress(OSError):
                found = path.stat()
                stamps.append((path, found.st_ino, found.st_mtime_ns))
        return stamps


async def _never_twice(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keeps aiohttp from sending a request again by itself, which it would do with any PUT."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _authority(member: Member) -> str:
    host, port = member
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
