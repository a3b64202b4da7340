"""The loop that makes this host what the store says, and keeps it so.

A round reads what has to be read, plans, and carries the plan out. It runs when the store tells a
change, when a verb asks for it, when a sandbox or the forwarder dies, and every few seconds. Only
the last kind, and the one after a failure, ask kernel and data plane for everything; the others
plan from the last reading and what was done since, so that a change of the store is in the tables
within milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane import Dataplane
from pyvxlan.daemon.desired import Desired, Site, WantedNetwork, wanted_gateway, wanted_network
from pyvxlan.daemon.errors import DaemonError, NotSettledError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.executor import Executor, Kernel
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import Endpoint, Host, LocalEndpoint
from pyvxlan.daemon.net import alias_of
from pyvxlan.daemon.operations import (
    Actual,
    EnsureGateway,
    EnsureNamespace,
    Op,
    RemoveNamespace,
    applied,
    blocked,
)
from pyvxlan.daemon.plan import plan, scope_of
from pyvxlan.daemon.sandboxes import Sandboxes
from pyvxlan.daemon.state import EVERYTHING, State
from pyvxlan.daemon.timings import Timings

log = logging.getLogger(__name__)

RETRY_S = 0.1
"""Pause after the first round that failed; doubles up to the interval of full comparisons."""
WARN_AGAIN_S = 60.0
GATEWAY_MTU_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that could not be carried out; `op` is None if the reading itself failed."""

    op: Op | None
    error: Exception
    since: float
    """Since when it fails without a break, on the monotonic clock."""


class Reconciler:
    """Keeps this host as it should be, from `run` until that is cancelled.

    Args:
        state: What the store says.
        local: What is attached here.
        net: The kernel.
        dataplane: The forwarder; started and stopped by the caller.
        settings: For the interval of full comparisons.
        host: This host.
        timings: Where durations are noted.
        events: Where repairs are noted for people.
    """

    def __init__(
        self,
        *,
        state: State,
        local: LocalRecords,
        net: Kernel,
        dataplane: Dataplane,
        settings: Settings,
        host: Host,
        timings: Timings | None = None,
        events: Events | None = None,
    ) -> None:
        self.repairs = 0
        """Operations that put back what somebody else had changed."""
        self.after_round: Callable[[], Awaitable[None]] | None = None
        """Called at the end of each round, before `settled` returns."""
        self._state = state
        self._local = local
        self._net = net
        self._dataplane = dataplane
        self._executor = Executor(net, dataplane)
        self._interval_s = settings.reconcile_interval_s
        names = IPv4Address(settings.names_address) if settings.plugin_path else None
        self._site = Site(host, alias_of(host.id), names_address=names)
        self._sandboxes = Sandboxes(net.sandbox_alive, self._sandbox_changed)
        self._wanted: dict[str, WantedNetwork] = {}
        self._actual: Actual | None = None
        self._done: Desired | None = None
        self._failures: dict[str, Failure] = {}
        self._warned: dict[str, tuple[str, float]] = {}
        self._dirty: set[str] = {EVERYTHING}
        self._timings = timings or Timings()
        self._events = events or Events()
        self._changed_at: float | None = None
        """When the store told the oldest change that is not in the tables yet."""
        self._unknown = True
        self._next_full = 0.0
        self._wake = asyncio.Event()
        self._pulse = asyncio.Event()
        self._requested = 0
        self._served = 0

    @property
    def on_sandbox_lost(self) -> Callable[[str], Awaitable[None]] | None:
        """Called with the id of an endpoint whose sandbox is gone, until it is no longer local."""
        return self._sandboxes.on_lost

    @on_sandbox_lost.setter
    def on_sandbox_lost(self, hook: Callable[[str], Awaitable[None]]) -> None:
        self._sandboxes.on_lost = hook

    def poke(self, nid: str = EVERYTHING, /) -> None:
        """Asks for a comparison of one network, or of all, now."""
        self._dirty.add(nid)
        self._wake.set()

    def sandboxes(self) -> tuple[LocalEndpoint, ...]:
        """The local endpoints whose sandbox lives, as far as is known; without Docker's."""
        return tuple(here for here in self._own().values() if here.id not in self._sandboxes.lost)

    def wanted(self, network_id: str) -> WantedNetwork | None:
        """What this host shall have of a network, as the last round had it; None for nothing."""
        return self._wanted.get(network_id)

    def problems(self) -> tuple[str, ...]:
        """What could not be done in the last round, for people."""
        return tuple(str(failure.error) for failure in self._failures.values())

    async def settled(
        self, nid: str, /, timeout_s: float = 10.0, *, endpoint_id: str | None = None
    ) -> None:
        """Returns when what is wanted of a network at the time of the call is so.

        What fails for other endpoints of the network does not count: with `endpoint_id`, none but
        that one's; without, what failed before already.

        Raises:
            DaemonError: The cause, at once if trying again is of no use.
            NotSettledError: Not within `timeout_s`; its cause says why.
        """
        self.poke(nid)
        self._requested += 1
        request, began = self._requested, time.monotonic()
        causes: list[Exception] = []
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    pulse = self._pulse
                    if self._served >= request:
                        causes = self._causes(nid, endpoint_id, began)
                        if not causes:
                            return
                        for cause in causes:
                            if isinstance(cause, DaemonError) and not cause.retry:
                                raise cause
                    await pulse.wait()
        except TimeoutError:
            told = "; ".join(map(str, causes)) or "the reconciler is busy"
            error = NotSettledError(f"not within {timeout_s:g} s: {told}; it goes on trying")
            raise error from (
                causes[0] if len(causes) == 1 else ExceptionGroup("not settled", causes or [error])
            )

    async def run(self) -> None:
        """Reconciles until cancelled; then leaves everything as it is."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_state())
                group.create_task(self._follow_dataplane())
                group.create_task(self._loop())
        finally:
            self._sandboxes.close()

    async def _follow_state(self) -> None:
        while True:
            await self._state.dirty.wait()
            since, dirty = self._state.dirty_since, self._state.take_dirty()
            here = {EVERYTHING, *(one.network_id for one in self._local.endpoints.values())}
            if self._changed_at is None and dirty & here:
                self._changed_at = since
            self._dirty |= dirty
            self._wake.set()

    async def _follow_dataplane(self) -> None:
        while True:
            await self._dataplane.lost()
            self._unknown = True
            self._wake.set()

    async def _loop(self) -> None:
        pause_s = RETRY_S
        while True:
            self._wake.clear()
            await self._round()
            if self._failures:
                self._unknown = True
                wait_s, pause_s = pause_s, min(2 * pause_s, self._interval_s)
            else:
                wait_s, pause_s = self._next_full - time.monotonic(), RETRY_S
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._wake.wait()
            except TimeoutError:
                self._unknown = True

    async def _round(self) -> None:
        serving, began = self._requested, time.monotonic()
        changed_at, self._changed_at = self._changed_at, None
        failures: list[tuple[Op | None, Exception]] = []
        full = self._unknown or began >= self._next_full
        try:
            self._sandboxes.check(self._own(), everyone=full)
            desired = await self._derive()
            actual = self._actual if not full else None
            if actual is None:
                actual = await self._read(desired, failures)
                repairing = desired == self._done
            else:
                repairing = False
            if actual is not None:
                self._actual = await self._carry_out(desired, actual, failures, repairing=repairing)
            self._done = desired if not failures else None
            if self.after_round:
                await self.after_round()
        except DaemonError as error:
            self._dirty.add(EVERYTHING)
            failures.append((None, error))
        except Exception as error:
            log.exception("round failed")
            self._dirty.add(EVERYTHING)
            failures.append((None, error))
        self._note(failures)
        now = time.monotonic()
        kind = "full" if full else "change"
        self._timings.round.note(now - began, kind, failed=bool(failures))
        if changed_at is not None and failures:
            self._changed_at = changed_at
        elif changed_at is not None:
            self._timings.convergence.observe(now - changed_at)
        self._served = serving
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _own(self) -> dict[str, LocalEndpoint]:
        """The local endpoints whose sandbox is this daemon's concern: Docker's tells Docker."""
        return {id_: here for id_, here in self._local.endpoints.items() if not here.engine_id}

    async def _derive(self) -> Desired:
        """Says what should be; of networks that are not dirty, what it said before."""
        dirty, self._dirty = self._dirty, set()
        dirty |= self._sandboxes.take_dirty()
        local: dict[str, list[tuple[LocalEndpoint, Endpoint]]] = defaultdict(list)
        hold = False
        for here in self._local.endpoints.values():
            nid = here.network_id
            self._state.join(nid)
            endpoint = self._state.endpoint(nid, here.id)
            endpoint = endpoint or self._local.records.get(here.id)
            if endpoint is None or not (nid in self._state.networks or nid in self._local.networks):
                # Neither the store nor our copy tells what to build: what stands may be just that.
                hold = True
            elif here.id not in self._sandboxes.lost:
                local[nid].append((here, endpoint))
            else:
                local[nid] = local[nid]
        if EVERYTHING in dirty or (local and not self._wanted):
            dirty = set(local)
            mtu_bytes = await self._net.underlay_mtu(self._site.host.vtep)
            self._site = replace(self._site, gateway_mtu_bytes=min(GATEWAY_MTU_BYTES, mtu_bytes))
        self._wanted = {
            nid: self._wanted[nid]
            if nid in self._wanted and nid not in dirty
            else self._derive_network(nid, pairs)
            for nid, pairs in local.items()
        }
        gateway = wanted_gateway(self._site, self._wanted.values())
        return Desired(dict(self._wanted), gateway, hold, self._site.names_link)

    def _derive_network(
        self, nid: str, pairs: Sequence[tuple[LocalEndpoint, Endpoint]]
    ) -> WantedNetwork:
        return wanted_network(
            self._site,
            self._state.networks.get(nid) or self._local.networks[nid],
            netns=self._local.netns_name(nid),
            local=pairs,
            endpoints=self._state.endpoints[nid] if self._state.joined(nid) else None,
            hosts=self._state.hosts,
        )

    async def _read(
        self, desired: Desired, failures: list[tuple[Op | None, Exception]]
    ) -> Actual | None:
        """Asks kernel and data plane; for one that does not answer, the last reading stands."""
        attachments = [one for network in desired.networks.values() for one in network.attachments]
        before = self._actual
        net, tables = await asyncio.gather(
            self._net.observe(attachments), self._dataplane.dump(), return_exceptions=True
        )
        for answer in (net, tables):
            if isinstance(answer, DaemonError):
                failures.append((None, answer))
            elif isinstance(answer, BaseException):
                raise answer
        if before is None and failures:
            return None
        if not failures:
            self._unknown = False
            self._next_full = time.monotonic() + self._interval_s
        before = before or Actual()
        return Actual(
            before.net if isinstance(net, BaseException) else net,
            before.tables if isinstance(tables, BaseException) else tables,
        )

    async def _carry_out(
        self,
        desired: Desired,
        actual: Actual,
        failures: list[tuple[Op | None, Exception]],
        *,
        repairing: bool,
    ) -> Actual:
        """Does what is to be done; an operation that fails stops only those that build on it."""
        failed: list[Op] = []
        adopted = False
        for op in plan(desired, actual):
            if blocked(op, failed):
                failed.append(op)
                continue
            try:
                await self._executor.perform(op)
            except Exception as error:  # noqa: BLE001 - noted, reported, tried again
                failed.append(op)
                failures.append((op, error))
                continue
            actual = applied(actual, op)
            adopted = adopted or (isinstance(op, EnsureNamespace) and op.adopt)
            self._tell(op, repairing=repairing)
            if isinstance(op, RemoveNamespace):
                self._forget(op.netns)
        if adopted and not failures:
            again = await self._read(desired, failures)
            if again is not None:
                return await self._carry_out(desired, again, failures, repairing=repairing)
        return actual

    def _tell(self, op: Op, *, repairing: bool) -> None:
        faults = ",".join(getattr(op, "faults", ()))
        if repairing:
            self.repairs += 1
            log.warning("repaired %s faults=%s", op.key, faults)
            self._events.note("repaired", f"{op.key} {faults}".strip())
        else:
            log.debug("done %s faults=%s", op.key, faults)

    def _forget(self, netns: str) -> None:
        """Frees the name of a namespace that is gone."""
        for nid, name in self._local.netns_names.items():
            if name == netns:
                self._local.forget_netns(nid)

    def _note(self, failures: Sequence[tuple[Op | None, Exception]]) -> None:
        now = time.monotonic()
        noted: dict[str, Failure] = {}
        for op, error in failures:
            key = op.key if op else f"read {type(error).__name__}"
            before = self._failures.get(key)
            noted[key] = Failure(op, error, before.since if before else now)
            told, when = self._warned.get(key, ("", 0.0))
            if told != str(error) or now - when > WARN_AGAIN_S:
                log.warning("not done, tried again %s cause=%s", key, error)
                self._warned[key] = (str(error), now)
        self._failures = noted
        self._warned = {key: warned for key, warned in self._warned.items() if key in noted}

    def _causes(self, nid: str, endpoint_id: str | None, began: float) -> list[Exception]:
        """Why a network is not as wanted."""
        causes = [
            failure.error
            for failure in self._failures.values()
            if _concerns(failure, nid, endpoint_id, began)
        ]
        here = any(one.network_id == nid for one in self._local.endpoints.values())
        if here and not self._state.joined(nid):
            causes.append(NotSettledError("the store has not told the network's endpoints yet"))
        return causes

    def _sandbox_changed(self) -> None:
        self._wake.set()


def _concerns(failure: Failure, nid: str, endpoint_id: str | None, began: float) -> bool:
    op = failure.op
    if op is None or isinstance(op, EnsureGateway):
        return True
    if op.scope not in ("", scope_of(nid)):
        return False
    if op.endpoint_id:
        return op.endpoint_id == endpoint_id if endpoint_id else failure.since >= began
    return failure.since >= began or bool(op.scope)
