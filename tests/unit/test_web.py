"""The web page as a client asks for it: who is answered, and with what."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyvxlan.daemon.dataplane.threads import Worker
from pyvxlan.daemon.listening import bind, serving
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from pyvxlan.daemon.webpage import FILES, HEADERS, Page, refusal
from pyvxlan.daemon.webviews import FRESH_S, STALE_S, VIEWS, Readings, Views
from tests.unit.doorway import Doorway, doorway

NAMES = {"localhost", "h1", "proxy.example"}


class Site:
    """A page that is served, and the hosts that it shows."""

    def __init__(self, door: Doorway, port: int) -> None:
        self.door = door
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
        """One request; returns status, headers and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(
                method, path, headers={n.replace("_", "-"): t for n, t in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def document(self, path: str) -> Any:
        status, headers, text = self.ask(f"/api/v1/{path}")
        assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8"), text
        return json.loads(text)


@contextlib.contextmanager
def site(door: Doorway, views: Views | None = None, port: int = 0) -> Iterator[Site]:
    """Serves the page of the first of two hosts in memory."""
    readings = Readings(partial(door.status.document_with_tunnels, "9.9.9"))
    page = Page(views or Views(readings, door.node.state, door.status.events), NAMES)
    bound = bind("web_address", "127.0.0.1", port)
    stack = AsyncExitStack()
    door.do(stack.enter_async_context(serving(page.application(), bound)))
    try:
        yield Site(door, bound.getsockname()[1])
    finally:
        door.do(stack.aclose())


TUNNEL = {
    "vnis": [4242], "sent": 9, "answered": 8, "lost": 1, "reordered": 0, "narrowed": 0, "recent": 4,
    "recent_lost": 1, "round_trips": {200: 8}, "round_trip_sum_ns": 8 * 150_000,
    "path_mtu_bytes": 1400, "needed_mtu_bytes": 1500, "answer_age_ns": 10**8,
}  # fmt: skip


@contextlib.contextmanager
def peopled() -> Iterator[Doorway]:
    """Two hosts with two networks, three endpoints and traffic."""
    carried = iter(range(1000, 10_000_000, 1000))

    async def stats() -> dict[str, object]:
        frames = next(carried)
        return {
            "pid": 5,
            "workers": 1,
            "restarts": 0,
            "threads": (Worker(0, 1.0, 0.0, 25, 100, segment=True, gro=True),),
            "networks": {
                4242: {
                    "egress_frames": frames,
                    "egress_bytes": 100 * frames,
                    "ingress_drops": {"source_mac_unknown": 7},
                }
            },
            "vteps": {"198.18.0.2": {"sent_bytes": 150 * frames, "sent_datagrams": frames}},
            "tunnels": {"198.18.0.2": TUNNEL},
            "underlay": {"drops": {"vni_unknown": 3}},
        }

    with doorway() as door:
        one, two = door.node, door.other
        door.do(one.service.create_network(NetworkSpec("blue", vni=4242)))
        door.do(one.service.create_network(NetworkSpec("red", vni=4243)))
        for node, name, network in (
            (one, "web", "blue"), (two, "base", "blue"), (two, "mail", "red"),
        ):  # fmt: skip
            node.net.add(name)
            door.do(node.service.attach(AttachSpec(network, name, EndpointSpec(name=name))))
        door.do(one.until(lambda: sum(map(len, one.state.endpoints.values())) == 2))
        door.dataplane.stats = stats
        yield door


@pytest.fixture(scope="module")
def shown() -> Iterator[Site]:
    with peopled() as door, site(door) as made:
        yield made


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:9474", True),
        ("127.0.0.1", True),
        ("localhost:8000", True),
        ("LocalHost", True),
        ("localhost.", True),
        ("h1:9474", True),
        ("proxy.example", True),
        ("", False),
        ("attacker.example", False),
        ("attacker.example:9474", False),
        ("127.0.0.1.attacker.example", False),
        ("localhost.attacker.example", False),
        ("192.0.2.1", False),
        ("127.0.0.2", False),
        ("[::1]:9474", False),
        ("127.0.0.1:9474@attacker.example", False),
        ("attacker.example/127.0.0.1", False),
        ("127.0.0.1 ", False),
    ],
)
def test_host_must_be_the_servers_own(host: str, answered: bool) -> None:
    assert (refusal({"Host": host}, "/", "127.0.0.1", NAMES) == "") is answered


def test_address_of_version_six_is_known_in_every_form() -> None:
    for host in ("[fd98::1]:9474", "[FD98:0:0::1]"):
        assert refusal({"Host": host}, "/", "fd98::1", NAMES) == ""
    assert "web_names" in refusal({"Host": "[fd98::2]"}, "/", "fd98::1", NAMES)


@pytest.mark.parametrize(
    ("path", "headers", "answered"),
    [
        ("/api/v1/all", {}, True),
        ("/api/v1/all", {"Origin": "http://127.0.0.1:9474"}, True),
        ("/api/v1/all", {"Origin": "https://127.0.0.1:9474"}, True),
        ("/api/v1/all", {"Origin": "http://127.0.0.1:8000"}, False),
        ("/api/v1/all", {"Origin": "http://attacker.example"}, False),
        ("/api/v1/all", {"Origin": "null"}, False),
        ("/api/v1/all", {"Sec-Fetch-Site": "same-origin"}, True),
        ("/api/v1/all", {"Sec-Fetch-Site": "none"}, True),
        ("/api/v1/all", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("/api/v1/all", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, False),
        ("/api/v1/all", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("/page.js", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
    ],
)
def test_other_pages_get_nothing(path: str, headers: dict[str, str], answered: bool) -> None:
    asked = {"Host": "127.0.0.1:9474", **headers}
    assert (refusal(asked, path, "127.0.0.1", NAMES) == "") is answered


def test_files_come_with_a_policy_that_lets_nothing_else_in(shown: Site) -> None:
    for path, (_, kind) in FILES.items():
        status, headers, text = shown.ask(path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert {name: headers[name] for name in HEADERS} == HEADERS
        for outside in ("http://", "https://", "//cdn", "innerHTML", "eval("):
            assert outside not in text.replace("http://www.w3.org/2000/svg", ""), path
    policy = shown.ask("/")[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in shown.ask("/")[2]
    assert " on" not in "".join(
        part.partition(">")[0].partition("=")[0] for part in shown.ask("/")[2].split("<")
    )


def test_refused_requests_say_why_and_carry_the_policy_too(shown: Site) -> None:
    for path in ("/", "/api/v1/all", "/none"):
        status, headers, text = shown.ask(path, Host="attacker.example")
        assert status == 403
        assert "attacker.example" in text
        assert "web_names" in text
        assert headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_nothing_can_be_changed(shown: Site) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("/", "/api/v1/all", "/api/v1/networks"):
            assert shown.ask(path, method)[0] == 405
    assert shown.ask("/v1/networks")[0] == 404
    assert shown.ask("/../config.toml")[0] == 404
    assert shown.ask("/config.toml")[0] == 404


def test_unknown_parameters_are_refused(shown: Site) -> None:
    for query in ("x=1", "after=x", "after=-1", f"find={'x' * 201}"):
        status, _, text = shown.ask(f"/api/v1/all?{query}")
        assert (status, "find" in text) == (400, True), query


def test_views_show_the_hosts_and_what_is_on_them(shown: Site) -> None:
    summary = shown.document("summary")
    assert (summary["host"], summary["version"], summary["store"]) == ("host1", "9.9.9", "synced")
    assert (summary["hosts"], summary["hosts_alive"], summary["networks"]) == (2, 2, 2)
    hosts = [
        (one["name"], one["self"], one["alive"], one["endpoints"])
        for one in shown.document("hosts")
    ]
    assert hosts == [("host1", True, True, 1), ("host2", False, True, 1)]
    networks = {one["name"]: one for one in shown.document("networks")["shown"]}
    assert (networks["blue"]["here"], networks["blue"]["local"]) == (True, 1)
    assert (networks["blue"]["vni"], networks["blue"]["remote"]) == (4242, 1)
    assert (networks["red"]["here"], networks["red"]["remote"]) == (False, None)
    endpoints = shown.document("endpoints")
    assert endpoints["total"] == 2
    assert [(one["name"], one["network"], one["host"]) for one in endpoints["shown"]] == [
        ("web", "blue", "host1"), ("base", "blue", "host2"),
    ]  # fmt: skip
    assert shown.document("drops")["shown"] == [
        {"network": "blue", "direction": "ingress", "reason": "source_mac_unknown", "frames": 7},
        {"network": "", "direction": "ingress", "reason": "vni_unknown", "frames": 3},
    ]
    (tunnel,) = shown.document("tunnels")
    assert (tunnel["host"], tunnel["loss"], tunnel["path_mtu_bytes"]) == ("host2", 0.25, 1400)
    assert 0 < tunnel["rtt_s"] <= 200e-6
    assert shown.document("store")["state"] == "synced"


def test_everything_is_the_views_together(shown: Site) -> None:
    everything = shown.document("all")
    assert set(everything) == set(VIEWS)
    assert everything["hosts"] == shown.document("hosts")


def test_find_looks_at_names_hosts_and_addresses(shown: Site) -> None:
    for text, names in (("BASE", ["base"]), ("host1", ["web"]), ("blue", ["web", "base"]),
                        ("10.0.", ["web", "base"]), ("nothing", [])):  # fmt: skip
        found = shown.document(f"endpoints?find={text}")
        assert ([one["name"] for one in found["shown"]], found["total"]) == (names, len(names))
    assert [one["name"] for one in shown.document("networks?find=re")["shown"]] == ["red"]


def test_events_go_on_where_they_were_left(shown: Site) -> None:
    events = shown.document("events")
    assert {event["kind"] for event in events} >= {"network_added", "endpoint_added"}
    last = events[-1]["number"]
    shown.door.node.events.note("repaired", "something")
    fresh = shown.document(f"events?after={last}")
    assert [(event["kind"], event["text"]) for event in fresh] == [("repaired", "something")]


def test_no_view_holds_a_secret_or_what_nobody_asked_for(shown: Site) -> None:
    text = json.dumps(shown.document("all"))
    endpoint = next(iter(shown.door.node.local.records.values()))
    assert endpoint.mac.hex(":") not in text
    for word in ("container_id", "password", "token", "sandbox"):
        assert f'"{word}"' not in text


async def test_readings_are_shared_and_give_rates() -> None:
    clock, taken = [100.0], []

    async def read() -> dict[str, Any]:
        taken.append(clock[0])
        return {
            "pid": 1,
            "uptime_s": clock[0],
            "host": {"name": "h"},
            "store": {"state": "synced"},
            "forwarder": {"up": True},
            "workers": [],
            "networks": [],
            "peers": [{"host": "h2", "sent_datagrams": 0, "sent_bytes": 10 * clock[0],
                       "received_datagrams": 0, "received_bytes": 0}],
        }  # fmt: skip

    readings = Readings(read, lambda: clock[0])
    looks = await asyncio.gather(*[readings.look() for _ in range(20)])
    assert (len(taken), looks[0].rates) == (1, None)
    clock[0] += FRESH_S
    rates = (await readings.look()).rates
    assert rates is not None
    assert rates["peers"][0]["sent_bytes"] == 10
    clock[0] += FRESH_S / 2
    assert (await readings.look()).rates == rates
    clock[0] += STALE_S
    assert (await readings.look()).rates is None
    assert len(taken) == 3


def test_page_of_the_documentation_names_every_view() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "web.md").read_text("utf-8")
    assert [view for view in (*VIEWS, "all") if f"`/api/v1/{view}`" not in text] == []
