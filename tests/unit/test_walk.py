"""Whom a question `why` means, and whom it asks: on a store in memory, with made-up hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from pyvxlan.capture import DroppedFrame
from pyvxlan.daemon.dataplane.memory import MemoryDataplane
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.peering import Arguments, Peering
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec, WhySpec
from pyvxlan.daemon.why import EXPLAIN, TRACE, Tracer, Why, facts
from pyvxlan.daemon.why.explain import Pair
from tests.unit.cluster import Node
from tests.unit.memory_net import endpoint, host, network
from tests.unit.test_why import ALL, BIG, facts_of, traced


class Asked:
    """Answers for every host as if all was well, and notes who was asked for what."""

    def __init__(self, node: Node) -> None:
        self.questions: list[tuple[str, Arguments]] = []
        peering = Peering(lambda: node.state.hosts, node.host, None)
        peering.answer(EXPLAIN, self.explain)
        peering.answer_stream(TRACE, self.trace)
        self.why = Why(
            service=node.service,
            state=node.state,
            local=node.local,
            sandboxes=node.net,
            peering=peering,
        )

    async def explain(self, arguments: Arguments) -> dict[str, Any]:
        self.questions.append((EXPLAIN, arguments))
        return facts.emit(facts_of(1))

    async def trace(
        self, arguments: Arguments, stop: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.questions.append((TRACE, arguments))
        yield {"ready": True}
        if not arguments.get("send"):
            await stop.wait()
        yield facts.emit(traced(f"{ALL} {BIG}"))

    async def ask(self, a: str, b: str, network: str = "") -> dict[str, Any]:
        self.questions.clear()
        return await self.why.ask(WhySpec(a, b, network))


async def attach(node: Node, network: str, sandbox: str, **spec: Any) -> None:
    node.net.add(sandbox)
    await node.service.attach(AttachSpec(network, sandbox, EndpointSpec(**spec)))


@pytest.fixture
async def asked(one: Node) -> Asked:
    for name in ("n1", "n2"):
        await one.service.create_network(NetworkSpec(name, ipv6=name == "n2"))
    await attach(
        one, "n1", "c1", name="web", aliases=("www",), hostname="w", container_id="c0ffee" * 2
    )
    await attach(one, "n1", "c2", name="db")
    await attach(one, "n2", "c3", name="db")
    await attach(one, "n2", "c4", name="log")
    one.net.add("loose")
    return Asked(one)


@pytest.mark.parametrize(
    ("a", "b", "met"),
    [
        ("web", "db", "n1"),
        ("WWW", "db.n1", "n1"),
        ("w", "10.0.0.3", "n1"),
        ("c0ffeec0", "c2", "n1"),
        ("log", "db", "n2"),
        ("c4", "c3", "n2"),
    ],
)
async def test_each_kind_of_reference_finds_its_endpoint(
    asked: Asked, a: str, b: str, met: str
) -> None:
    said = await asked.ask(a, b)
    assert said["reachable"], said
    assert said["network"] == met
    assert [question for question, _ in asked.questions] == [EXPLAIN, EXPLAIN, TRACE, TRACE]


async def test_a_name_is_looked_up_and_an_address_is_not(asked: Asked) -> None:
    for b, name in (("db", "db"), ("db.n1", "db.n1"), ("10.0.0.3", ""), ("c2", "")):
        await asked.ask("web", b)
        assert [arguments["name"] for _, arguments in asked.questions[:2]] == [name, ""]


async def test_the_address_decides_the_version(asked: Asked) -> None:
    said = await asked.ask("log", "db")
    assert "." in said["to"]["address"]
    six = asked.questions[0][1]["peer"]["record"].split('"ip6":"')[1].split("/")[0]
    said = await asked.ask("log", six)
    assert (said["to"]["address"], ":" in said["from"]["address"]) == (six, True)


@pytest.mark.parametrize(
    ("a", "b", "network", "code", "text"),
    [
        ("web", "log", "", "different_networks", "web is on n1, and log on n2"),
        ("web", "db", "n2", "different_networks", "n2 is not on both"),
        ("web", "wep", "", "not_attached", "no endpoint is called wep"),
        ("web", "10.9.9.9", "", "not_attached", "no endpoint has the address 10.9.9.9"),
        ("loose", "db", "", "not_attached", "namespace loose is on this host, and attached to no"),
    ],
)
async def test_what_has_no_way_between_is_said(
    asked: Asked, a: str, b: str, network: str, code: str, text: str
) -> None:
    said = await asked.ask(a, b, network)
    assert (said["reachable"], said["code"]) == (False, code), said
    assert text in said["text"]
    assert said["remedy"]
    assert asked.questions == []


async def test_what_means_two_of_one_network_is_refused(asked: Asked, one: Node) -> None:
    await attach(one, "n1", "c5", name="web2", aliases=("www",))
    with pytest.raises(InvalidError, match="www means several endpoints of one network: web"):
        await asked.ask("www", "db")
    with pytest.raises(InvalidError, match="web and c1 are the same endpoint"):
        await asked.ask("web", "c1")


async def test_endpoints_of_networks_elsewhere_are_found_too(asked: Asked, two: Node) -> None:
    elsewhere = Asked(two)
    await two.until(lambda: len(two.state.networks) == 2)
    said = await elsewhere.ask("web", "db.n1")
    # Its host can't be asked, since this one has no channel.
    assert said["code"] == "unheard"
    assert "host1 can't be asked, since this host has peer_port = 0" in said["text"]


async def test_drops_of_others_and_of_before_are_none_of_a_trace(one: Node) -> None:
    own, peer = (
        endpoint(number, network(), host(), mac=bytes([2, 0, 0, 0, 0, number])) for number in (1, 2)
    )
    dataplane = MemoryDataplane()
    tracer = Tracer(state=one.state, local=one.local, net=None, dataplane=dataplane)  # type: ignore[arg-type]
    dataplane.drops = [
        DroppedFrame(time_ns, 1, "egress", reason, 4097, None, 98, b"".join(macs) + b"\x08\x00")
        for time_ns, reason, macs in (
            (9, "underlay_full", (peer.mac, own.mac)),
            (10, "underlay_error", (peer.mac, own.mac)),
            (11, "destination_unknown", (peer.mac, bytes(6))),
            (12, "source_not_vtep", (own.mac, peer.mac)),
            (13, "underlay_error", (peer.mac, own.mac)),
        )
    ]
    found = await tracer._drops(Pair(own, peer, peer.addresses[0].ip), 10)
    assert found == ("underlay_error", "source_not_vtep")
