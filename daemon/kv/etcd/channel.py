"""The members of an etcd cluster: one in use, the others to fail over to; TLS, users and tokens.

What became of a call that failed decides what may follow it, and etcd's answers are sorted by that:
a change is repeated only if it was surely not applied.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import grpc
from grpc import aio

from pyvxlan.daemon.errors import (
    ConfigError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.answers import HAS_LEADER, Seen, Verdict, explain, judge
from pyvxlan.daemon.kv.tls import client_context, pem, trusted, why_unreachable
from pyvxlan.daemon.kv.url import Member, StoreUrl, member_name, read_secret

log = logging.getLogger(__name__)

Stream: TypeAlias = "aio.StreamStreamCall[pb.Message, pb.Message]"

CALL_S = 2.5
"""How long a call may take, with every repetition."""
ATTEMPT_S = 1.0
"""After that long another member is asked what may be asked twice."""
CONNECT_S = 1.0
LOOK_S = 0.005
"""Between two looks whether a connection is there."""
PAUSE_S = 0.1
"""Before a member is asked again that could not serve."""
REMEMBERED_S = 2.0
"""How long a refused password, or why nobody can be reached, is not looked at again."""
OPTIONS = (
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # newer releases wait a minute for a ping otherwise
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_S)),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
)
_GONE = grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN


class _Member:
    """One server: its connection, and when it last failed."""

    def __init__(self, address: Member, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self.name = member_name(address)
        self.failed_at = 0.0
        self.channel = (
            aio.secure_channel(self.name, credentials, options=OPTIONS)
            if credentials
            else aio.insecure_channel(self.name, options=OPTIONS)
        )

    def state(self) -> grpc.ChannelConnectivity:
        """Tells whether there is a connection, and begins to make one if there is none."""
        return self.channel.get_state(try_to_connect=True)

    async def call(
        self, method: pb.Method, request: pb.Message, token: str, within_s: float
    ) -> pb.Message:
        call = self.channel.unary_unary(
            method.path, request_serializer=pb.emit, response_deserializer=method.parse
        )
        return await call(request, timeout=within_s, metadata=_metadata(token))


class EtcdChannel:
    """Calls to whichever member of a cluster answers.

    Args:
        url: Names the members, the user and the files.

    Raises:
        ConfigError: A file that the URL names can't be used.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self.seen = Seen()
        self.replaced: Callable[[str], None] = lambda reason: None
        """Called when another cluster answers, or one that was restored from a backup."""
        self._context = client_context(url)
        if url.password_file:
            read_secret(url.password_file, "password")
        credentials = _credentials(url) if url.tls else None
        self._members = [_Member(address, credentials) for address in url.members]
        secrets.SystemRandom().shuffle(self._members)  # so that hosts share out over the members
        self._token: str | None = None if url.user else ""
        self._authenticating = asyncio.Lock()
        self._refused: tuple[float, StoreError] | None = None
        self._unreachable = (0.0, "")
        self._closed = False

    async def call(
        self,
        method: pb.Method,
        request: pb.Message,
        *,
        repeatable: bool = False,
        within_s: float = CALL_S,
        attempt_s: float = ATTEMPT_S,
    ) -> pb.Message:
        """Calls one method and returns its answer.

        Args:
            method: What to call.
            request: Its message.
            repeatable: Applying it twice is as good as once, so a lost answer does not matter.
            within_s: When to give up.
            attempt_s: When to ask another member, if the call is repeatable.

        Raises:
            StoreConflictError: The lease that it names has expired; nothing was applied.
            StoreUnavailableError: Surely not applied, or nothing was to apply.
            StoreUncertainError: Maybe applied.
            CompactedError: It asks for a revision that is history no more.
        """
        deadline = time.monotonic() + within_s
        renewed = False
        while True:
            member = await self._connected(deadline)
            before, sent, token = self.seen, False, None
            try:
                token = await self._authenticated(member)
                sent = True
                left_s = max(PAUSE_S, deadline - time.monotonic())
                attempt_s = min(attempt_s, left_s) if repeatable else left_s
                answer = await member.call(method, request, token, attempt_s)
            except aio.AioRpcError as error:
                verdict, failure = _judged(error), self._explained(error, member)
                failure.__cause__ = error
            except asyncio.CancelledError:
                if not self._closed or is_cancelled():
                    raise
                raise self._closed_error(unsure=sent and not repeatable) from None
            else:
                if method in {pb.RANGE, pb.TXN}:
                    self._note(before, answer.header, member)
                return answer
            if verdict is Verdict.EXPIRED and self.url.user and not renewed:
                self._forget(token)
                renewed = True
                continue
            if verdict is Verdict.UNKNOWN and (repeatable or not sent):
                verdict = Verdict.ELSEWHERE
            if verdict in {Verdict.ELSEWHERE, Verdict.UNKNOWN}:
                self.avoid(member.name)
            if verdict is Verdict.UNKNOWN:
                raise StoreUncertainError(f"{failure}; maybe it was applied") from failure
            if verdict is not Verdict.ELSEWHERE or time.monotonic() + PAUSE_S > deadline:
                raise failure
            await asyncio.sleep(PAUSE_S)

    async def stream(self, method: pb.Method) -> tuple[str, Stream]:
        """Opens a stream on the member in use; returns its name and the stream.

        Raises:
            StoreUnavailableError: No member answers, or the user is refused.
        """
        member = await self._connected(time.monotonic() + CALL_S)
        try:
            token = await self._authenticated(member)
        except aio.AioRpcError as error:
            self.avoid(member.name)
            raise self._explained(error, member) from error
        make = member.channel.stream_stream(
            method.path, request_serializer=pb.emit, response_deserializer=method.parse
        )
        return member.name, make(metadata=_metadata(token))

    def failure(self, error: aio.AioRpcError, member_name: str) -> StoreError:
        """Says why a stream ended, and turns to another member and a new token."""
        if _judged(error) is Verdict.EXPIRED:
            self._forget(self._token)
        else:
            self.avoid(member_name)
        return self._explained(error, self._named(member_name))

    def avoid(self, member_name: str) -> None:
        """Makes the member the last to be asked."""
        self._named(member_name).failed_at = time.monotonic()

    @property
    def members(self) -> list[str]:
        """The members' names, as in the URL."""
        return [member_name(address) for address in self.url.members]

    async def ask(self, member_name: str, method: pb.Method, request: pb.Message) -> pb.Message:
        """Calls a method that changes nothing on one member, once.

        Raises:
            StoreUnavailableError: It did not answer, or refused.
        """
        member = self._named(member_name)
        if await self._first_connected([member], time.monotonic() + CONNECT_S) is None:
            raise StoreUnavailableError(await self._look_at(member.address))
        try:
            token = await self._authenticated(member)
            return await member.call(method, request, token, ATTEMPT_S)
        except aio.AioRpcError as error:
            if _judged(error) is Verdict.EXPIRED:
                self._token = None if self.url.user else ""
            raise self._explained(error, member) from error

    async def close(self) -> None:
        """Ends every call and connection."""
        self._closed = True
        await asyncio.gather(*(member.channel.close() for member in self._members))

    def _named(self, name: str) -> _Member:
        return next(member for member in self._members if member.name == name)

    async def _connected(self, deadline: float) -> _Member:
        """Gives the member that failed longest ago and can be connected to."""
        order = sorted(self._members, key=lambda member: member.failed_at)
        found = await self._first_connected(order, min(deadline, time.monotonic() + CONNECT_S))
        for member in order:
            if member is found:
                return member
            member.failed_at = time.monotonic()
        at, reasons = self._unreachable
        if time.monotonic() > at + REMEMBERED_S:
            looks = await asyncio.gather(*map(self._look_at, self.url.members))
            reasons = "; ".join(map(" ".join, zip(self.members, looks, strict=True)))
            self._unreachable = (time.monotonic(), reasons)
        raise StoreUnavailableError(f"no member can be used: {reasons}")

    async def _look_at(self, address: Member) -> str:
        certificate = self.url.cert is not None
        return await why_unreachable(address, self._context, certificate=certificate)

    async def _first_connected(self, members: Sequence[_Member], deadline: float) -> _Member | None:
        """Connects to all at once and gives the first of them that can be, or None in the end.

        It looks again and again, since gRPC's own wait for a change can't be given up.
        """
        while not self._closed:
            states = [(member, member.state()) for member in members]
            waits = time.monotonic() < deadline
            for member, state in states:
                if state is grpc.ChannelConnectivity.READY:
                    return member
                if state not in _GONE and waits:
                    break
            else:
                return None
            await asyncio.sleep(LOOK_S)
        raise self._closed_error(unsure=False)

    async def _authenticated(self, member: _Member) -> str:
        """Gives the token to send; empty if there is none to send."""
        async with self._authenticating:
            if self._token is None:
                if self._refused and time.monotonic() < self._refused[0] + REMEMBERED_S:
                    raise self._refused[1]
                self._token = await self._authenticate(member)
            return self._token

    async def _authenticate(self, member: _Member) -> str:
        assert self.url.password_file is not None
        try:
            password = read_secret(self.url.password_file, "password")
            request = pb.AuthenticateRequest(name=self.url.user, password=password)
            answer = await member.call(pb.AUTHENTICATE, request, "", ATTEMPT_S)
        except ConfigError as error:
            refusal: StoreError = StoreUnavailableError(str(error))
        except aio.AioRpcError as error:
            details = error.details() or ""
            if "authentication is not enabled" in details:
                log.warning(
                    "store asks for no password member=%s user=%s", member.name, self.url.user
                )
                return ""
            if "invalid user ID or password" not in details:
                raise
            refusal = self._explained(error, member)
        else:
            return str(answer.token)
        self._refused = (time.monotonic(), refusal)
        raise refusal

    def _forget(self, token: str | None) -> None:
        if self.url.user and self._token == token:
            self._token = None

    def _note(self, before: Seen, header: pb.Message, member: _Member) -> None:
        """Compares what a linearizable answer says of the cluster with what was known before."""
        now = Seen.of(header)
        reason = now.contradicts(before)
        if reason and self.seen == before:
            self.seen = now
            self.replaced(f"{member.name} serves another store, or one restored: {reason}")
        elif not reason and now.revision >= self.seen.revision:
            self.seen = now

    def _explained(self, error: aio.AioRpcError, member: _Member) -> StoreError:
        return explain(error.code(), error.details() or "", member.name, self.url)

    def _closed_error(self, *, unsure: bool) -> StoreError:
        kind = StoreUncertainError if unsure else StoreUnavailableError
        return kind(f"store {self.url} is closed")


def _credentials(url: StoreUrl) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        pem(trusted(url), "ca", url),
        pem(url.key, "key", url) if url.key else None,
        pem(url.cert, "cert", url) if url.cert else None,
    )


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (HAS_LEADER, ("token", token)) if token else (HAS_LEADER,)


def is_cancelled() -> bool:
    """Tells whether this task is to end, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _judged(error: aio.AioRpcError) -> Verdict:
    return judge(error.code(), error.details() or "")
