"""`pyvxlan why A B`: finds the two, asks their hosts, follows marked frames, and has it judged."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from typing import Any, Protocol

from pyvxlan.daemon.errors import DaemonError, InvalidError, PeerError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import Address, Endpoint, Host, Sandbox
from pyvxlan.daemon.net import watching
from pyvxlan.daemon.peering import Answer, Peering
from pyvxlan.daemon.requests import WhySpec
from pyvxlan.daemon.service import Service
from pyvxlan.daemon.state import State
from pyvxlan.daemon.why import facts
from pyvxlan.daemon.why.case import Case, Side, Verdict
from pyvxlan.daemon.why.explain import Pair
from pyvxlan.daemon.why.facts import Facts, Traced
from pyvxlan.daemon.why.judge import findings, judge

EXPLAIN, TRACE = "explain", "trace"
"""The questions that the two hosts are asked."""
TRACE_S = 20.0
"""How long a trace may take; it takes 4 s at most where nothing is slow."""
PREFIX_DIGITS = 4
"""How much of an id must be given at least, so that a short name is none."""


class Sandboxes(Protocol):
    """Finds namespaces; `daemon.net.Net` does it."""

    async def resolve_sandbox(self, text: str) -> Sandbox:
        """Finds a network namespace by name, path or pid."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a reference means; false if nothing."""

    endpoints: tuple[Endpoint, ...]
    name: str = ""
    """The reference, if a container would look it up as a name."""
    address: Address | None = None

    def __bool__(self) -> bool:
        return bool(self.endpoints)


@dataclass(frozen=True, slots=True)
class _Pair:
    """What is asked: two endpoints of a network, by an IP version, and what A calls B."""

    network: str
    a: Endpoint
    b: Endpoint
    version: int
    name: str


class _Unwalkable(Exception):  # noqa: N818 - it is an answer
    """There is nothing to walk; says why."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class Why:
    """Answers for this host's users, about any two endpoints of the cluster.

    Args:
        service: Lists endpoints and networks.
        state: Which hosts there are.
        local: What is attached here.
        sandboxes: For references to namespaces.
        peering: Asks the two hosts, of which this one may be one.
    """

    def __init__(
        self,
        *,
        service: Service,
        state: State,
        local: LocalRecords,
        sandboxes: Sandboxes,
        peering: Peering,
    ) -> None:
        self._service = service
        self._state = state
        self._local = local
        self._sandboxes = sandboxes
        self._peering = peering

    async def ask(self, spec: WhySpec) -> dict[str, Any]:
        """Gives the document of `POST /v1/why`; docs/why.md describes it.

        Raises:
            InvalidError: A reference means several endpoints of one network, or both mean one.
            NotFoundError: There is no such network.
        """
        try:
            found = await self._pair(spec)
        except _Unwalkable as answer:
            return _document(answer.verdict) | {"from": None, "to": None, "network": None}
        to_a, to_b = (_address(one, found.version) for one in (found.a, found.b))
        there, back = Pair(found.a, found.b, to_b, found.name), Pair(found.b, found.a, to_a)
        a, b = await asyncio.gather(self._explain(there, to_a), self._explain(back, to_b))
        case = Case(found.network, a, b)
        if a.facts and a.facts.sandbox:
            case = await self._follow(case, there, back)
        return _document(judge(case)) | {
            "network": found.network,
            "from": _side_document(found.a, case.a),
            "to": _side_document(found.b, case.b),
        }

    # Who is meant

    async def _pair(self, spec: WhySpec) -> _Pair:
        """Finds the two endpoints on one network, on those that are here if they are on one.

        Only then are all endpoints of the cluster read.
        """
        names = {network.id: network.name for network in await self._service.networks()}
        names |= {id_: network.name for id_, network in self._local.networks.items()}
        wanted = (await self._service.find_network(spec.network)).id if spec.network else ""
        known = {e.id: e for of in self._state.endpoints.values() for e in of.values()}
        known |= {endpoint.id: endpoint for endpoint in await self._service.attached()}
        try:
            return await self._pair_among(known, spec, names, wanted)
        except _Unwalkable:
            every = {endpoint.id: endpoint for endpoint in await self._service.endpoints()}
            return await self._pair_among(known | every, spec, names, wanted)

    async def _pair_among(
        self,
        every: Mapping[str, Endpoint],
        spec: WhySpec,
        names: Mapping[str, str],
        wanted: str,
    ) -> _Pair:
        a_meant, b_meant = [
            _meant(ref, every.values(), names) or await self._in_namespace(ref, every, names)
            for ref in (spec.a, spec.b)
        ]
        a_of, b_of = ({one.network_id: one for one in m.endpoints} for m in (a_meant, b_meant))
        shared = sorted(a_of.keys() & b_of.keys(), key=lambda id_: names.get(id_, id_))
        shared = [id_ for id_ in shared if wanted in {"", id_}]
        if not shared:
            raise _Unwalkable(_apart(spec, a_of, b_of, names))
        network_id = shared[0]
        for ref, meant in ((spec.a, a_meant), (spec.b, b_meant)):
            _check_one(ref, [one for one in meant.endpoints if one.network_id == network_id])
        a, b = a_of[network_id], b_of[network_id]
        if a.id == b.id:
            raise InvalidError(f"{spec.a} and {spec.b} are the same endpoint: name two")
        versions = {one.version for one in a.addresses} & {one.version for one in b.addresses}
        if b_meant.address:
            versions &= {b_meant.address.version}
        if not versions:
            raise _Unwalkable(_of_other_version(a, b))
        network = names.get(network_id, network_id[:12])
        return _Pair(network, a, b, min(versions), b_meant.name)

    async def _in_namespace(
        self, ref: str, every: Mapping[str, Endpoint], names: Mapping[str, str]
    ) -> _Found:
        """Takes a reference for a namespace of this host; says what is wrong if it is none."""
        try:
            sandbox = await self._sandboxes.resolve_sandbox(ref)
        except DaemonError:
            raise _Unwalkable(self._unknown(ref, every.values())) from None
        within = [
            every[id_]
            for id_, here in self._local.endpoints.items()
            if here.sandbox.inode == sandbox.inode and id_ in every
        ]
        if within:
            return _Found(tuple(within))
        network = next(iter(sorted(names.values())), "NETWORK")
        text = f"namespace {ref} is on this host, and attached to no network"
        remedy = f"pyvxlan attach --network {network} {ref}"
        raise _Unwalkable(Verdict("not_attached", text, remedy))

    def _unknown(self, ref: str, every: Iterable[Endpoint]) -> Verdict:
        since = ""
        if (stale_s := self._service.stale_s) is not None:
            since = f", as far as is known here: the store has not answered for {stale_s:.0f} s"
        with contextlib.suppress(ValueError):
            text = f"no endpoint has the address {ip_address(ref)}{since}"
            return Verdict("not_attached", text, "pyvxlan endpoint ls")
        near = difflib.get_close_matches(ref, [e.name for e in every if e.name], n=1)
        remedy = f"pyvxlan why with {near[0]}" if near else "pyvxlan endpoint ls"
        remedy += f", or attach it: pyvxlan attach --network NETWORK --name {ref} NAMESPACE"
        text = f"no endpoint is called {ref}, and no namespace of this host is{since}"
        return Verdict("not_attached", text, remedy)

    def _host_name(self, endpoint: Endpoint) -> str:
        host: Host | None = self._state.hosts.get(endpoint.host_id)
        return host.name if host else endpoint.host_id[:12]

    # What they say

    async def _explain(self, pair: Pair, address: Address) -> Side:
        """What the host of `pair.own`, which has `address`, says."""
        side = Side(_label(pair.own), self._host_name(pair.own), str(address))
        try:
            answer = await self._peering.ask(pair.own.host_id, EXPLAIN, pair.emit())
            return replace(side, facts=facts.parse(Facts, answer))
        except DaemonError as error:
            return replace(side, unheard=str(error))

    async def _follow(self, case: Case, there: Pair, back: Pair) -> Case:
        """Sends marked frames from A, with both hosts watching, or A's alone."""
        a, b = case.a, case.b
        mark = {"mark": secrets.token_bytes(watching.MARK_BYTES).hex()}
        haste = any(facts.SMALL in one.breaks for one in findings(case))
        sent = there.emit() | mark | {"send": True, "haste": haste}
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            watched = None
            if b.facts and b.facts.sandbox:
                with contextlib.suppress(DaemonError):
                    watched = await stack.enter_async_context(
                        self._peering.stream(back.own.host_id, TRACE, back.emit() | mark, stop)
                    )
                    await anext(watched, None)
            try:
                async with self._peering.stream(there.own.host_id, TRACE, sent) as answers:
                    a = replace(a, traced=await _last(answers))
            except DaemonError as error:
                return replace(case, a=replace(a, unheard=str(error)))
            stop.set()
            if watched is not None:
                with contextlib.suppress(DaemonError):
                    b = replace(b, traced=await _last(watched))
        return replace(case, a=a, b=b)


async def _last(answers: AsyncIterator[Answer]) -> Traced:
    """Reads a trace to its end; its last message says what was seen.

    Raises:
        PeerError: It does not end in time.
        InvalidError: It ended without an answer.
    """
    try:
        async with asyncio.timeout(TRACE_S):
            messages = [answer async for answer in answers]
    except TimeoutError as error:
        raise PeerError(f"its trace did not end within {TRACE_S:g} s") from error
    return facts.parse(Traced, messages[-1] if messages else None)


def _meant(ref: str, every: Iterable[Endpoint], names: Mapping[str, str]) -> _Found:
    """Finds the endpoints that a reference means: the first kind of reference that fits counts."""
    with contextlib.suppress(ValueError):
        address = ip_address(ref)
        of = (e for e in every if any(one.ip == address for one in e.addresses))
        return _Found(tuple(of), address=address)
    word, long = ref.lower(), len(ref) >= PREFIX_DIGITS
    kinds: Sequence[tuple[bool, Callable[[Endpoint], bool]]] = (
        (False, lambda e: e.id == ref),
        (True, lambda e: word in {e.name.lower(), _dotted(e, names)} - {""}),
        (True, lambda e: word in map(str.lower, e.aliases)),
        (True, lambda e: e.hostname != "" and word == e.hostname.lower()),
        (False, lambda e: long and (e.id.startswith(ref) or e.container_id.startswith(ref))),
    )
    for named, fits in kinds:
        if found := tuple(e for e in every if fits(e)):
            return _Found(found, ref if named else "")
    return _Found(())


def _dotted(endpoint: Endpoint, names: Mapping[str, str]) -> str:
    return f"{endpoint.name}.{names.get(endpoint.network_id, '')}".lower() if endpoint.name else ""


def _check_one(ref: str, found: Sequence[Endpoint]) -> None:
    if len(found) > 1:
        shown = ", ".join(f"{_label(one)} ({one.id[:12]})" for one in found[:5])
        raise InvalidError(f"{ref} means several endpoints of one network: {shown}; use an id")


def _apart(
    spec: WhySpec, a: Mapping[str, Endpoint], b: Mapping[str, Endpoint], names: Mapping[str, str]
) -> Verdict:
    """Says that two endpoints share no network, or not the one that was named."""

    def on(of: Mapping[str, Endpoint]) -> str:
        return ", ".join(sorted(names.get(id_, id_[:12]) for id_ in of))

    also = f" ({spec.network} is not on both)" if spec.network else ""
    text = (
        f"{spec.a} is on {on(a)}, and {spec.b} on {on(b)}: networks do not reach each other{also}"
    )
    other = sorted(names.get(id_, id_[:12]) for id_ in b)[0]
    remedy = f"pyvxlan attach --network {other} with the namespace of {spec.a}, on its host"
    return Verdict("different_networks", text, remedy)


def _of_other_version(a: Endpoint, b: Endpoint) -> Verdict:
    def has(endpoint: Endpoint) -> str:
        return f"{_label(endpoint)} has {', '.join(str(one.ip) for one in endpoint.addresses)}"

    text = f"{has(a)}, {has(b)}: that address is of another IP version than all of {_label(a)}"
    return Verdict("different_networks", text, "name another address, or an endpoint")


def _address(endpoint: Endpoint, version: int) -> Address:
    return next(one.ip for one in endpoint.addresses if one.version == version)


def _label(endpoint: Endpoint) -> str:
    return endpoint.name or endpoint.id[:12]


def _document(verdict: Verdict) -> dict[str, Any]:
    return {
        "reachable": verdict.reachable,
        "code": verdict.code,
        "text": verdict.text,
        "remedy": verdict.remedy,
        "also": [
            {"code": one.code, "host": one.side.host, "text": one.text, "remedy": one.remedy}
            for one in verdict.also
        ],
        "steps": [asdict(step) for step in verdict.steps],
    }


def _side_document(endpoint: Endpoint, side: Side) -> dict[str, Any]:
    return {
        "endpoint": endpoint.id,
        "name": endpoint.name,
        "address": side.address,
        "host": side.host,
        "unheard": side.unheard,
        "facts": facts.emit(side.facts) if side.facts else None,
        "traced": facts.emit(side.traced) if side.traced else None,
    }
