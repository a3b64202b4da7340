"""Many things at once on two Engines, and what must hold afterwards.

Used at a small size by `test_load`, at full size by `benches.docker.load`. All of it goes through
the Engines' API, as Docker's command line does, but without a process for each call.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.docker.hosts import IMAGE, DockerHost, DockerWorld, EngineError, gone
from tests.netns.world import BIN, eventually

T = TypeVar("T")
PATIENCE_S = 30.0


def create_overlay(host: DockerHost, name: str, subnet: str = "") -> str:
    """Makes a network of ours by the Engine's API; gives the Engine's id."""
    ipam = {"Driver": "pyvxlan", "Config": [{"Subnet": subnet}] if subnet else []}
    body = {"Name": name, "CheckDuplicate": True, "Driver": "pyvxlan", "IPAM": ipam}
    return str(host.api("POST", "/networks/create", body)["Id"])


def create_container(host: DockerHost, network: str, address: str = "", *, name: str = "") -> str:
    """Makes a container that sleeps, and does not start it; gives its id."""
    attached = {network: {"IPAMConfig": {"IPv4Address": address}}} if address else {}
    body = {
        "Image": IMAGE,
        "Cmd": ["sleep", "3600"],
        "HostConfig": {"NetworkMode": network},
        "NetworkingConfig": {"EndpointsConfig": attached},
    }
    query = f"?name={name}" if name else ""
    return str(host.api("POST", f"/containers/create{query}", body)["Id"])


def start_container(host: DockerHost, container: str) -> None:
    host.api("POST", f"/containers/{container}/start")


def remove_container(host: DockerHost, container: str) -> None:
    host.api("DELETE", f"/containers/{container}?force=1")


def stored(host: DockerHost) -> dict[str, Any]:
    """Every record in the store that outlives a session, by key."""
    printed = host.run(BIN / "pyvxlan", "store", "dump", host.world.store).stdout
    entries = map(json.loads, printed.splitlines())
    return {entry["key"]: entry.get("value") for entry in entries if "key" in entry}


# A name that two hosts want at once


@dataclass(frozen=True, slots=True)
class Race:
    """What a race for a name came to."""

    accepted: int
    """How many of the calls the Engines took."""
    settled_s: float
    """From the calls until each Engine showed the name once, and nobody had more to do."""
    duplicates: int
    """Engines that showed it more than once after that."""


def race(world: DockerWorld, name: str) -> Race:
    """Lets every host make a network of one name at the same moment; removes it again.

    Asserts that the cluster has one such network in the end, and every Engine the same one.
    """
    refused: list[str] = []
    barrier = threading.Barrier(len(world.hosts))

    def make(host: DockerHost) -> None:
        barrier.wait()
        try:
            create_overlay(host, name)
        except EngineError as error:
            refused.append(str(error))

    began = time.monotonic()
    _together(make, world.hosts)
    accepted = len(world.hosts) - len(refused)
    assert accepted, f"nobody got {name}: {refused}"
    eventually(lambda: _same_everywhere(world, name), within_s=PATIENCE_S, what=f"one {name}")
    settled_s = time.monotonic() - began
    # What a host still had in hand would show now.
    time.sleep(0.3)
    counts = [len(_shown(host, name)) for host in world.hosts]
    assert _same_everywhere(world, name), f"{name} did not stay: {counts}"
    world[1].api("DELETE", f"/networks/{name}")
    for host in world.hosts:
        gone(host, name, within_s=PATIENCE_S)
    return Race(accepted, settled_s, sum(count > 1 for count in counts))


def _same_everywhere(world: DockerWorld, name: str) -> bool:
    subnets = [
        tuple(config["Subnet"] for config in network["IPAM"]["Config"])
        for host in world.hosts
        for network in _shown(host, name)
    ]
    if len(subnets) != len(world.hosts) or len(set(subnets)) != 1:
        return False
    listed = json.loads(world[1].cli("network", "ls", "--format", "json"))
    ours = [network for network in listed if network["name"] == name]
    assert len(ours) <= 1, f"the cluster has {len(ours)} networks {name}"
    return len(ours) == 1 and tuple(one["cidr"] for one in ours[0]["subnets"]) == subnets[0]


def _shown(host: DockerHost, name: str) -> list[dict[str, Any]]:
    return [network for network in host.api("GET", "/networks") if network["Name"] == name]


# Containers that start and end at once


@dataclass(frozen=True, slots=True)
class Storm:
    """What a round of starts came to."""

    started: int
    wanted: int
    failures: Sequence[str]
    starts_s: float
    """From the first call to the end of the last."""
    removals_s: float


def storm(world: DockerWorld, network: str, *, each: int, at_once: int) -> Storm:
    """Starts `each` containers on every host, `at_once` at a time, and removes them in that way.

    Asserts that no address was given twice, that the cluster knows just these endpoints by their
    names, and that after the removal nothing of them is left, on the hosts and in the store.
    """
    wanted = [(host, f"s{secrets.token_hex(4)}") for _ in range(each) for host in world.hosts]
    failures: list[str] = []
    made: list[tuple[DockerHost, str]] = []

    def start(entry: tuple[DockerHost, str]) -> None:
        host, name = entry
        try:
            create_container(host, network, name=name)
            made.append(entry)
            start_container(host, name)
        except EngineError as error:
            failures.append(f"{name} on {host.netns}: {error}")

    began = time.monotonic()
    _in_turns(start, wanted, at_once)
    starts_s = time.monotonic() - began
    given: dict[str, str] = {}
    for host, name in made:
        shown = host.api("GET", f"/containers/{name}/json")
        if shown["State"]["Running"]:
            given[name] = shown["NetworkSettings"]["Networks"][network]["IPAddress"]
    twice = {address: n for address, n in Counter(given.values()).items() if n > 1}
    assert not twice, f"addresses given more than once: {twice}"
    eventually(
        lambda: _endpoints(world) == given,
        within_s=PATIENCE_S,
        what="the cluster knows each container by its name and address",
    )
    began = time.monotonic()
    _in_turns(lambda entry: remove_container(*entry), made, at_once)
    removals_s = time.monotonic() - began
    nothing_left(world, network)
    return Storm(len(given), len(wanted), failures, starts_s, removals_s)


def nothing_left(world: DockerWorld, network: str) -> None:
    """Asserts that a network without containers has nothing: no endpoint, claim or interface."""
    shown = json.loads(world[1].cli("network", "inspect", network))[0]
    network_id, gateway_address = shown["id"], shown["subnets"][0]["gateway"]

    def leftovers() -> list[str]:
        kinds = ("ep/", "name/", "own/", "mac/", "ip/")
        gateway = f"ip/{network_id}/{gateway_address}"
        kept = [key for key in stored(world[1]) if key.startswith(kinds) and key != gateway]
        for host in world.hosts:
            kept += map(str, (host.run_dir / "netns").glob(f"*-{network_id[:10]}"))
            kept += map(str, (host.state_dir / "endpoints").glob("*.json"))
            links = json.loads(host.run("ip", "-json", "link", "show", "type", "veth").stdout)
            # What waits for Docker; that of its gateway bridge is called veth and random digits.
            names = {link["ifname"] for link in links}
            kept += [name for name in names - {"under0"} if not name.startswith("veth")]
        return kept

    eventually(lambda: not leftovers(), within_s=PATIENCE_S, what="nothing is left")


def _endpoints(world: DockerWorld) -> dict[str, str]:
    listed = json.loads(world[1].cli("endpoint", "ls", "--format", "json"))
    return {one["name"]: one["addresses"][0].partition("/")[0] for one in listed}


def _together(action: Callable[[T], object], items: Sequence[T]) -> None:
    with ThreadPoolExecutor(len(items)) as pool:
        list(pool.map(action, items))


def _in_turns(
    action: Callable[[tuple[DockerHost, str]], object],
    entries: Sequence[tuple[DockerHost, str]],
    at_once: int,
) -> None:
    """Runs an action for each entry, on each host so many at a time."""
    hosts = {host.number: host for host, _ in entries}

    def of_host(number: int) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(action, [entry for entry in entries if entry[0].number == number]))

    _together(of_host, sorted(hosts))
