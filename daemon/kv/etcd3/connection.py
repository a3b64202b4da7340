"""One client of python-etcd3 at a time, on one member; when it fails, another on the next."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import Any, Protocol, TypeVar

import grpc

from pyvxlan.daemon.errors import (
    ConfigError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv.etcd.answers import HAS_LEADER, Seen, Verdict, explain, judge
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.tls import client_context, trusted, why_unreachable
from pyvxlan.daemon.kv.url import Member, StoreUrl, member_name, read_secret

try:
    import etcd3
    from etcd3.etcdrpc import AuthenticateRequest, AuthStub
    from etcd3.exceptions import Etcd3Exception
except TypeError as error:
    raise ConfigError(
        f"python-etcd3 can't be used with protobuf {metadata.version('protobuf')}: run pip install "
        "'pyvxlan[python-etcd3]' in an environment of its own, or write etcd:// for the store, "
        "which needs no python-etcd3"
    ) from error

from pyvxlan.daemon.kv.etcd3.watcher import Client, StreamWatcher

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_S = 2.0
"""How long one request may take."""
HEARTBEAT_S = 3.0
"""Between two reads that prove that the member answers and has a leader."""
BACKOFF_S = (0.1, 1.0)
THREADS = 16
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
FAILURES = (grpc.RpcError, Etcd3Exception, ValueError)
"""What the library raises: gRPC's errors, its own, and ValueError where a channel is closed."""


class Visit(Protocol):
    """Lets a thread call a client; what fails is raised as a `StoreError`."""

    async def __call__(self, action: Callable[[Client], T]) -> T:
        """Calls `action` with the client."""


class Generation:
    """A client from its connection to its end, and the stream of its watches."""

    def __init__(self, member: Member, client: Client) -> None:
        self.member = member
        self.name = member_name(member)
        self.client = client
        self.watcher = StreamWatcher(client, self._stream_ended, begin_s=CALL_S)
        self.broken = asyncio.Event()
        self.reason = ""
        self._loop = asyncio.get_running_loop()

    def break_off(self, reason: str) -> None:
        """Ends it; does nothing if it has ended."""
        if not self.broken.is_set():
            self.reason = reason
            self.broken.set()

    def close(self) -> None:
        """Ends its calls and its stream."""
        self.break_off("it was closed")
        self.client.close()

    def _stream_ended(self, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under a store left open
            self._loop.call_soon_threadsafe(self.break_off, reason)


class Connection:
    """Calls to whichever member answers.

    Args:
        url: Names the members, the user and the files.
        keys: Translates keys.
        up: Called when there is a new generation.
        down: Called with the reason when one could not be made, and may be called again.
        replaced: Called when another cluster answers, or one that was restored from a backup.

    Raises:
        ConfigError: A file that the URL names can't be used.
    """

    def __init__(
        self,
        url: StoreUrl,
        keys: Keys,
        *,
        up: Callable[[], None],
        down: Callable[[str], None],
        replaced: Callable[[str], None],
    ) -> None:
        self.url = url
        self._keys = keys
        self._up = up
        self._down = down
        self._replaced = replaced
        self._context = client_context(url)
        self._ca = str(trusted(url)) if url.tls else None
        if url.password_file:
            read_secret(url.password_file, "password")
        members = list(url.members)
        secrets.SystemRandom().shuffle(members)  # so that hosts share out over the members
        self._failed_at = dict.fromkeys(members, 0.0)
        self._seen = Seen()
        self._generation: Generation | None = None
        self._reason = ""
        """Why nobody could be used at the last attempt; empty while the first is under way."""
        self._settled = asyncio.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="etcd3")
        self._closed = False
        self._task = asyncio.create_task(self._run(), name=f"connection {url}")

    async def settled(self) -> Generation:
        """Gives the generation in use, and waits for one that is about to be made.

        Raises:
            StoreUnavailableError: There is none.
        """
        if self._generation is not None and self._generation.broken.is_set():
            self._settled.clear()  # another is about to take its place
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_S):
                await self._settled.wait()
        if self._closed:
            raise StoreUnavailableError(f"store {self.url} is closed")
        if self._generation is None:
            raise StoreUnavailableError(
                f"no member can be used: {self._reason or 'none has answered yet'}"
            )
        return self._generation

    async def call(
        self, action: Callable[[Client], T], *, repeatable: bool = False, within_s: float = CALL_S
    ) -> T:
        """Lets a thread call the client.

        Args:
            action: Called with the client.
            repeatable: Applying it twice is as good as once, so a lost answer does not matter.
            within_s: How long it may take.

        Raises:
            StoreConflictError: The lease that it names has expired; nothing was applied.
            StoreUnavailableError: Surely not applied, or nothing was to apply.
            StoreUncertainError: Maybe applied.
        """
        renewed = False
        tries = len(self.url.members) if repeatable else 1
        while True:
            generation = await self.settled()
            client = generation.client
            sent = client.metadata
            if within_s != CALL_S:
                client = copy.copy(client)
                client.timeout = within_s
            try:
                return await self.in_thread(partial(action, client))
            except FAILURES as error:
                verdict, failure = self._judged(error, generation.name)
                failure.__cause__ = error
            if verdict is Verdict.EXPIRED and self.url.user and not renewed:
                renewed = True
                await self._renew_token(generation, sent)
                continue
            if verdict in {Verdict.ELSEWHERE, Verdict.UNKNOWN}:
                self._break_off(generation, str(failure))
                tries -= 1
                if repeatable and tries > 0:
                    continue
            if verdict is Verdict.UNKNOWN and not repeatable:
                raise StoreUncertainError(f"{failure}; maybe it was applied") from failure
            raise failure

    @contextlib.asynccontextmanager
    async def visit(self, member: Member) -> AsyncGenerator[Visit]:
        """Gives what lets a thread call a client of its own, on one member.

        Raises:
            StoreError: The member can't be used, or the call failed.
        """
        generation = self._open(member)

        async def ask(action: Callable[[Client], T]) -> T:
            try:
                return await self.in_thread(lambda: action(generation.client))
            except FAILURES as error:
                raise await self._explained(error, member) from error

        try:
            if self.url.user:
                await ask(self._authenticate)
            yield ask
        finally:
            generation.close()

    def note(self, header: Any) -> None:
        """Notes how new an answer was, so that a store restored from a backup is told from it."""
        if header.cluster_id == self._seen.cluster_id:
            self._seen = replace(self._seen, revision=max(self._seen.revision, header.revision))

    async def in_thread(self, action: Callable[[], T]) -> T:
        """Lets a thread do something; what it raises is raised.

        Raises:
            StoreUnavailableError: The store is closed.
        """
        if self._closed:
            raise StoreUnavailableError(f"store {self.url} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)

    async def close(self) -> None:
        """Ends every call and connection."""
        self._closed = True
        self._settled.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        """Keeps a client, and replaces it when it fails."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(max(BACKOFF_S[0], 2 * pause_s), BACKOFF_S[1])
            generation = await self._connect()
            if generation is None:
                continue
            began_at = time.monotonic()
            try:
                self._generation = generation
                self._settled.set()
                self._up()
                await self._look_after(generation)
            finally:
                self._generation = None
                if not self._closed:
                    self._settled.clear()
                generation.close()
            log.info("etcd client ended member=%s cause=%s", generation.name, generation.reason)
            if time.monotonic() > began_at + HEARTBEAT_S:
                pause_s = 0.0

    async def _look_after(self, generation: Generation) -> None:
        """Returns when a generation has failed: asks now and then, since a silence says nothing."""
        while not generation.broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await generation.broken.wait()
                    return
            sent = generation.client.metadata
            try:
                await self.in_thread(partial(self._probe, generation.client))
            except FAILURES as error:
                verdict, failure = self._judged(error, generation.name)
                if verdict is Verdict.EXPIRED and self.url.user:
                    with contextlib.suppress(StoreError):
                        await self._renew_token(generation, sent)
                        continue
                self._break_off(generation, str(failure))

    def _break_off(self, generation: Generation, reason: str) -> None:
        """Ends a generation, whose member is the last to be asked from now on."""
        if not generation.broken.is_set():
            self._failed_at[generation.member] = time.monotonic()
        if self._generation is generation:
            self._settled.clear()
        generation.break_off(reason)

    async def _connect(self) -> Generation | None:
        """Makes a client on the member that failed longest ago and can be used, if any can."""
        reasons = []
        for member in sorted(self._failed_at, key=lambda member: self._failed_at[member]):
            try:
                return await self._begin(member)
            except StoreError as error:
                self._failed_at[member] = time.monotonic()
                reasons.append(str(error).removeprefix(f"store {self.url}: "))
            self._down("; ".join(reasons))  # which watches are told once
        self._reason = "; ".join(reasons)
        self._settled.set()
        return None

    async def _begin(self, member: Member) -> Generation:
        """Makes a client on one member, which has answered then.

        Raises:
            StoreError: It can't be used; the message says why.
        """
        generation = self._open(member)
        try:
            if self.url.user:
                await self.in_thread(partial(self._authenticate, generation.client))
            now = Seen.of(await self.in_thread(partial(self._probe, generation.client)))
        except FAILURES as error:
            generation.close()
            raise await self._explained(error, member) from error
        except BaseException:
            generation.close()
            raise
        reason, self._seen = now.contradicts(self._seen), now
        if reason:
            self._replaced(f"{generation.name} serves another store, or one restored: {reason}")
        return generation

    def _open(self, member: Member) -> Generation:
        """Makes a client that has asked for nothing yet.

        Raises:
            StoreUnavailableError: A file of certificates, which was there at first, is gone.
        """
        host, port = member
        try:
            client = etcd3.client(
                f"[{host}]" if ":" in host else host,
                port,
                ca_cert=self._ca,
                cert_cert=str(self.url.cert) if self.url.cert else None,
                cert_key=str(self.url.key) if self.url.key else None,
                timeout=CALL_S,
                grpc_options=OPTIONS,
            )
        except OSError as error:
            raise StoreUnavailableError(
                f"{error.filename} can't be read: {error.strerror}"
            ) from error
        client.metadata = (HAS_LEADER,)
        return Generation(member, client)

    def _probe(self, client: Client) -> Any:
        """Asks for what only most members together can answer; gives the answer's header."""
        return client.get_response(self._keys.key("probe")).header

    async def _renew_token(self, generation: Generation, sent: Sequence[tuple[str, str]]) -> None:
        """Authenticates again, unless somebody did since `sent` was sent."""
        if generation.client.metadata is not sent:
            return
        try:
            await self.in_thread(partial(self._authenticate, generation.client))
        except FAILURES as error:
            raise self._judged(error, generation.name)[1] from error

    def _authenticate(self, client: Client) -> None:
        """Gives a client a token to send; python-etcd3's own way works with TLS only."""
        assert self.url.password_file is not None
        try:
            password = read_secret(self.url.password_file, "password")
        except ConfigError as error:
            raise StoreUnavailableError(str(error)) from error
        request = AuthenticateRequest(name=self.url.user, password=password)
        try:
            answer = AuthStub(client.channel).Authenticate(request, CALL_S)
        except grpc.RpcError as error:
            if "authentication is not enabled" not in (error.details() or ""):
                raise
            log.warning("store asks for no password url=%s user=%s", self.url, self.url.user)
            client.metadata = (HAS_LEADER,)
        else:
            client.metadata = (HAS_LEADER, ("token", answer.token))

    async def _explained(self, error: Exception, member: Member) -> StoreError:
        """Says why a member can't be used; looks at it by hand if it did not say so itself."""
        name = member_name(member)
        verdict, failure = self._judged(error, name)
        if verdict is not Verdict.UNKNOWN:
            return failure
        certificate = self.url.cert is not None
        why = await why_unreachable(member, self._context, certificate=certificate)
        return StoreUnavailableError(f"{name} {why}")

    def _judged(self, error: Exception, member: str) -> tuple[Verdict, StoreError]:
        """What became of a call, and the error to raise for it."""
        rpc = error if isinstance(error, grpc.RpcError) else error.__context__
        if isinstance(rpc, grpc.RpcError):
            code, details = rpc.code(), rpc.details() or ""
            return judge(code, details), explain(code, details, member, self.url)
        text = f"store {self.url}: {member}: {error or type(error).__name__}"
        # The channel was closed before anything was sent.
        verdict = Verdict.ELSEWHERE if isinstance(error, ValueError) else Verdict.UNKNOWN
        return verdict, StoreUnavailableError(text)
