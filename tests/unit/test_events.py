"""Events: what is noted, in which words, and how it is read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from pyvxlan.daemon import events, records
from pyvxlan.daemon.cli import run as run_cli
from pyvxlan.daemon.events import KEPT, Events
from pyvxlan.daemon.kv import Write
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from pyvxlan.daemon.state import State
from tests.unit.doorway import Doorway, doorway
from tests.unit.test_api import call
from tests.unit.test_state import HOST, OTHER, network, publish


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    with doorway() as made:
        yield made


def told(noted: Events, after: int = 0) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in noted.after(after)]


def test_numbers_grow_whatever_the_clock_does() -> None:
    clock = iter([10.0, 10.0, 9.0, 11.0])
    noted = Events(lambda: next(clock))
    for text in "abcd":
        noted.note("repaired", text)
    assert [event.number for event in noted.after(0)] == [10_000, 10_001, 10_002, 11_000]
    assert told(noted, 10_001) == [("repaired", "c"), ("repaired", "d")]


def test_the_last_are_kept_and_all_are_counted() -> None:
    noted = Events()
    for number in range(KEPT + 5):
        noted.note("repaired", str(number))
    assert [event.text for event in noted.after(0)] == [str(n) for n in range(5, KEPT + 5)]
    assert noted.counts["repaired"] == KEPT + 5
    assert set(noted.counts) == set(events.KINDS)


def test_unknown_kind_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Events().note("reparied", "")


async def test_what_is_read_at_the_start_is_no_event() -> None:
    store, noted = MemoryStore(), Events()
    await publish(store, network(1), HOST, OTHER)
    state = State(store, HOST, events=noted)
    await state.start([network(1).id])
    await publish(store, network(2, "later"))
    await state.wait_for(lambda: len(state.networks) == 2)
    assert told(noted) == [("network_added", "later")]
    await state.close()
    await store.close()


@pytest.mark.parametrize("first", ["host", "session"])
async def test_host_that_comes_up_is_told_by_name(first: str) -> None:
    store, noted = MemoryStore(), Events()
    state = State(store, HOST, events=noted)
    await state.start()
    if first == "host":
        await publish(store, OTHER)
        await state.wait_for(lambda: OTHER.id in state.hosts)
    await store.txn([], [Write(records.alive_key(OTHER.id), b"")])
    await state.wait_for(lambda: OTHER.id in state.alive)
    if first == "session":
        assert told(noted) == []
        await publish(store, OTHER)
        await state.wait_for(lambda: OTHER.id in state.hosts)
    assert told(noted) == [("host_up", OTHER.name)]
    await state.close()
    await store.close()


def test_what_comes_and_goes_is_told(door: Doorway) -> None:
    node, other = door.node, door.other
    after = max((event.number for event in node.events.after(0)), default=0)
    for host in (node, other):
        host.net.add("box")
    made = door.do(node.service.create_network(NetworkSpec("blue")))
    here = door.do(node.service.attach(AttachSpec("blue", "box", EndpointSpec(name="here"))))
    there = door.do(other.service.attach(AttachSpec("blue", "box", EndpointSpec(name="there"))))
    door.do(node.until(lambda: len(node.state.endpoints[made.id]) == 2))
    door.do(other.service.detach(there.id))
    door.do(node.until(lambda: len(node.state.endpoints[made.id]) == 1))
    door.do(node.service.detach(here.id))
    door.do(node.service.remove_network("blue"))
    door.do(node.until(lambda: not node.state.networks))
    door.do(other.membership.close())
    door.do(node.until(lambda: other.host.id not in node.state.alive))
    assert told(node.events, after) == [
        ("network_added", "blue"),
        ("endpoint_added", "here on blue, this host"),
        ("endpoint_added", "there on blue, host host2"),
        ("endpoint_removed", "there on blue, host host2"),
        ("endpoint_removed", "here on blue, this host"),
        ("network_removed", "blue"),
        ("host_down", "host2"),
    ]


def test_command_shows_them_and_goes_on(door: Doorway, capsys: pytest.CaptureFixture[str]) -> None:
    door.node.events.note("repaired", "EnsureBridge 0123456789 mtu")
    words = ["--run-dir", str(door.run_dir), "events"]
    assert run_cli(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("Z  repaired            EnsureBridge 0123456789 mtu")
    assert run_cli([*words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "repaired"


def test_follow_shows_what_comes_later(door: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []

    def wait(_: float) -> None:
        if any("comes later" in line for line in printed):
            raise KeyboardInterrupt
        door.node.events.note("repaired", "comes later")

    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr("click.echo", lambda text, **_: printed.append(text))
    assert run_cli(["--run-dir", str(door.run_dir), "events", "--follow"]) == 130
    assert sum("comes later" in line for line in printed) == 1


def test_number_that_is_none_is_refused(door: Doorway) -> None:
    status, answer = call(door, "GET", "/v1/events?after=x")
    assert (status, answer["error"]) == (400, "parameter after=x must be a number")
