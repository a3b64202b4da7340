"""Decides why one endpoint does not reach another, from what both hosts say. Pure.

First what is not as it should be, by the places along the way (`findings`); then where the marked
frames ended (`_lost`). A frame that got through is believed; one that did not is explained by what
is wrong where it ended, else by what is wrong elsewhere, else by the place itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyvxlan.daemon.dataplane import FORWARDER
from pyvxlan.daemon.model import OVERHEAD_BYTES
from pyvxlan.daemon.why import facts, words
from pyvxlan.daemon.why.case import Case, Finding, Side, Step, Verdict
from pyvxlan.daemon.why.facts import FULL, REPLY, REQUEST, SMALL, Facts, Seen

OUTWARDS = (facts.ETH, facts.VETH, facts.BRIDGE, facts.PORT, facts.TABLES, facts.UNDERLAY)
WATCHED = (facts.ETH, facts.VETH, facts.PORT, facts.UNDERLAY)
WITHIN = (facts.ETH, facts.VETH)
"""What is watched of a way that stays on one host."""


@dataclass(frozen=True, slots=True)
class _Point:
    """A place on the way there and back: which side's, which stop."""

    side: Side
    stop: str
    kind: str

    def saw(self, size: str) -> bool:
        """Whether a frame of that size was seen here."""
        traced = self.side.traced
        return traced is not None and Seen(self.stop, self.kind, size) in traced.seen


@dataclass(frozen=True, slots=True)
class _Loss:
    """A frame of a size that was seen at `last`, and not at `next`, the first after it."""

    last: _Point | None
    next: _Point
    size: str


def judge(case: Case) -> Verdict:
    """Says whether A reaches B, and if not, why."""
    found, steps = tuple(findings(case)), tuple(_steps(case))
    if case.a.traced is None:
        # Nothing could be sent: the facts alone have to say why.
        first = next((one for one in found if SMALL in one.breaks), None)
        return Verdict.of(first or words.unheard(case.a), found, steps)
    if case.a.traced.refused:
        inside = (one for one in found if one.side is case.a and one.stop == facts.ETH)
        first = next((one for one in inside if SMALL in one.breaks), None)
        return Verdict.of(first or words.not_taken(case.a, case.b), found, steps)
    for size in (SMALL, FULL):
        if loss := _lost(case, size):
            broken = [one for one in found if size in one.breaks]
            return Verdict.of(_culprit(case, loss, broken), found, steps)
    if named := next((one for one in found if one.code == "name"), None):
        return Verdict.of(named, found, steps)
    text = f"{case.a.name} reaches {case.b.name} at {case.b.address}"
    return Verdict("ok", text, also=found, steps=steps)


def findings(case: Case) -> Iterator[Finding]:
    """What is not as it should be on both sides, from A to B."""
    yield from _of_side(case, case.a, case.b)
    if _ports_apart(case):
        yield words.ports_apart(case.a, case.b)
    yield from reversed(tuple(_of_side(case, case.b, case.a)))
    if _narrow(case.a) and not any(one.code == "eth_mtu" for one in _of_side(case, case.a, case.b)):
        yield words.narrow(case.a, case.b)
    resolution = case.a.facts.resolution if case.a.facts else None
    if resolution and (resolution.problem or case.b.address not in resolution.addresses):
        yield words.unresolved(case.a, resolution, case.b.address)


def _ports_apart(case: Case) -> bool:
    """Whether each host sends to another UDP port than the other listens at."""
    held, other = case.a.facts, case.b.facts
    return bool(held and other and not case.local and held.port != other.port)


def _of_side(case: Case, side: Side, other: Side) -> Iterator[Finding]:
    """What is not as it should be on one side, from the container outwards."""
    held = side.facts
    if held is None:
        return
    if not held.sandbox:
        yield words.not_attached(side)
        return
    passed: Sequence[str] = OUTWARDS
    if case.local:
        # One bridge leads from the one to the other: it is told of once.
        passed = (*WITHIN, facts.BRIDGE) if side is case.a else WITHIN
    for stop in passed:
        for fault in held.faults:
            if fault.stop == stop:
                yield words.fault(side, other, fault)
        if stop == facts.TABLES:
            yield from _of_tables(side, other, held)
        elif stop == facts.UNDERLAY:
            yield from _of_underlay(side, held)


def _of_tables(side: Side, other: Side, held: Facts) -> Iterator[Finding]:
    if held.forwarder:
        yield words.forwarder(side, breaks=held.datapath == FORWARDER)
        return
    if any(fault.what in {"namespace", "detached"} for fault in held.faults):
        return  # No table can be filled then.
    if not held.knows_peer:
        yield words.unknown_peer(side, other)
        return
    if held.stale_s is not None:
        yield words.stale(side)
    vtep = other.facts.vtep if other.facts else held.peer_vtep
    if held.peer_vtep != vtep:
        yield words.wrong_record(side, other, vtep)
    if (":" in vtep) != (":" in held.vtep):
        yield words.vteps_apart(side, other, vtep)
        return  # The data plane has nothing for the other, rightly.
    if held.fdb and held.fdb.found != vtep:
        yield words.fdb(side, other, held.fdb, vtep)
    for entry in held.neighbours:
        if entry.found != entry.wanted:
            yield words.neighbour(side, other, entry)


def _of_underlay(side: Side, held: Facts) -> Iterator[Finding]:
    needed = held.mtu + OVERHEAD_BYTES[6 if ":" in held.vtep else 4]
    if not held.vtep_link:
        yield words.vtep_missing(side)
    elif held.underlay_mtu < needed:
        yield words.underlay_mtu(side, needed)


def _steps(case: Case) -> Iterator[Step]:
    for side, stop in _way(case):
        watched = side.traced is not None and stop in side.traced.watched
        request, reply = (
            _Point(side, stop, kind).saw(SMALL) if watched else None for kind in (REQUEST, REPLY)
        )
        yield Step(side.host, stop, words.place(stop, side), request, reply)


def _way(case: Case) -> list[tuple[Side, str]]:
    """What a frame passes from A to B, of what can be watched."""
    stops = WITHIN if case.local else WATCHED
    return [(case.a, stop) for stop in stops] + [(case.b, stop) for stop in reversed(stops)]


def _lost(case: Case, size: str) -> _Loss | None:
    """Where the frames of a size ended; None if one went there and back, or is not sent at all."""
    traced = case.a.traced
    if traced is None or Seen(facts.ETH, REPLY, size) in traced.seen:
        return None
    if size == FULL and _narrow(case.a):
        return None
    way = _way(case)
    points = [
        _Point(side, stop, kind)
        for kind, passed in ((REQUEST, way), (REPLY, way[::-1]))
        for side, stop in passed
        if side.traced and stop in side.traced.watched
    ]
    last = max((number for number, point in enumerate(points) if point.saw(size)), default=-1)
    if last + 1 == len(points):
        return None
    return _Loss(points[last] if last >= 0 else None, points[last + 1], size)


def _narrow(side: Side) -> bool:
    """Whether a container knows that less than the network's MTU gets through."""
    return bool(side.facts and side.traced and 0 < side.traced.path_mtu < side.facts.mtu)


def _culprit(case: Case, loss: _Loss, broken: Sequence[Finding]) -> Finding:
    """What explains a loss: what is wrong there, else what is wrong first, else the place."""
    order = [(case.a.name, case.a.host, stop) for stop in OUTWARDS]
    order += [(case.b.name, case.b.host, stop) for stop in reversed(OUTWARDS)]
    at = [
        order.index((point.side.name, point.side.host, point.stop))
        for point in (loss.last or loss.next, loss.next)
    ]
    for one in broken:
        if min(at) <= order.index((one.side.name, one.side.host, one.stop)) <= max(at):
            return one
    return broken[0] if broken else _by_place(case, loss)


def _by_place(case: Case, loss: _Loss) -> Finding:
    """Explains a loss by where it was, since all that could be compared is as it should be."""
    last, after = loss.last, loss.next
    if last is None:
        return words.not_sent(case.a, case.b.address)
    if last.stop == after.stop == facts.ETH:
        return words.no_answer(after.side, loss.size)
    crosses = last.side is not after.side or last.stop == after.stop
    other = case.b if last.side is case.a else case.a
    if crosses and not case.local:
        return words.between(last.side, other, loss.size)
    if not crosses and facts.UNDERLAY in {last.stop, after.stop}:
        outwards = after.stop == facts.UNDERLAY
        return words.tunnel_end(last.side, other, loss.size, outwards=outwards)
    bridged = crosses or facts.PORT in {last.stop, after.stop}
    return (words.bridge if bridged else words.pair)(after.side, after.kind)
