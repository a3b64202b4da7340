"""What is to be done in Docker: tables of cases for the pure comparison, and its property."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon.model import Network, Subnet
from pyvxlan.daemon.plugin.comparison import Copy, Pair, Part, Publish, Remove, Step, compare
from pyvxlan.daemon.plugin.engine import EngineNetwork


def network(number: int, name: str = "", *, state: str = "up") -> Network:
    """The cluster's network with this number, called n<number> unless another name is given."""
    cidr = ip_network(f"10.0.{number}.0/24")
    return Network(
        id=f"{number:032x}",
        name=name or f"n{number}",
        vni=4096 + number,
        subnets=(Subnet(cidr, ip_address(f"10.0.{number}.1")),),
        mtu_bytes=1450,
        state=state,  # type: ignore[arg-type]
    )


def shown(engine_id: str, number: int, name: str = "") -> EngineNetwork:
    """A network of Docker's with the subnet of that number."""
    return EngineNetwork(
        engine_id, name or f"n{number}", frozenset({network(number).subnets[0].cidr})
    )


ONE = network(1)


def kinds(steps: list[Step]) -> list[tuple[str, str]]:
    """The steps by kind, and Docker's id or the network's name."""
    return [
        (type(step).__name__, step.network.name if isinstance(step, Copy) else step.engine_id)
        for step in steps
    ]


@pytest.mark.parametrize(
    ("networks", "docker", "pairs", "hidden", "steps"),
    [
        pytest.param([ONE], [], {}, [], [("Copy", "n1")], id="new in the cluster"),
        pytest.param([], [shown("a", 1)], {}, [], [("Publish", "a")], id="new in Docker"),
        pytest.param([ONE], [shown("a", 1)], {"a": ONE}, [], [], id="in step"),
        pytest.param([ONE], [shown("a", 1)], {}, [], [("Pair", "a")], id="found again"),
        pytest.param(
            [], [shown("a", 1)], {"a": ONE}, [], [("Remove", "a")], id="removed elsewhere"
        ),
        pytest.param(
            [ONE], [], {"a": ONE}, [], [("Part", "a"), ("Copy", "n1")], id="lost by Docker"
        ),
        pytest.param([], [], {"a": ONE}, [], [("Part", "a")], id="gone on both sides"),
        pytest.param([ONE], [], {}, [ONE.id], [], id="hidden"),
        pytest.param([network(1, state="down")], [], {}, [], [], id="being removed"),
        pytest.param(
            [ONE],
            [shown("a", 2, "n1")],
            {},
            [],
            [("Remove", "a"), ("Copy", "n1")],
            id="the name was taken elsewhere",
        ),
        pytest.param(
            [ONE],
            [shown("a", 1), shown("b", 1)],
            {"b": ONE},
            [],
            [("Remove", "a")],
            id="the pair stays, its double goes",
        ),
        pytest.param(
            [ONE, network(2)],
            [shown("a", 1), shown("b", 1)],
            {"a": ONE, "b": ONE},
            [],
            [("Remove", "b"), ("Copy", "n2")],
            id="twice with the same network",
        ),
        pytest.param(
            [network(1, "new")],
            [shown("a", 1)],
            {"a": ONE},
            [],
            [("Remove", "a"), ("Copy", "new")],
            id="another name by now",
        ),
    ],
)
def test_steps(
    networks: list[Network],
    docker: list[EngineNetwork],
    pairs: dict[str, Network],
    hidden: list[str],
    steps: list[tuple[str, str]],
) -> None:
    assert kinds(compare({n.id: n for n in networks}, docker, pairs, hidden=hidden)) == steps


def test_network_that_may_be_about_to_go_is_neither_parted_nor_copied() -> None:
    networks = {ONE.id: ONE}
    assert compare(networks, [], {"a": ONE}, leaving={"a"}) == []
    assert kinds(compare(networks, [], {"a": ONE}, leaving={"b"})) == [
        ("Part", "a"),
        ("Copy", "n1"),
    ]


def carry_out(
    steps: list[Step],
    networks: dict[str, Network],
    docker: dict[str, EngineNetwork],
    pairs: dict[str, Network],
) -> None:
    """Does what the steps say, as the steward would if nothing failed."""
    for step in steps:
        match step:
            case Pair(engine_id, paired):
                pairs[engine_id] = paired
            case Part(engine_id):
                pairs.pop(engine_id, None)
            case Remove(entry):
                del docker[entry.id]
                pairs.pop(entry.id, None)
            case Publish(entry):
                (cidr,) = entry.subnets
                made = network(int(str(cidr).split(".")[2]), entry.name)
                networks[made.id] = made
                pairs[entry.id] = made
            case Copy(copied):
                (cidr,) = {subnet.cidr for subnet in copied.subnets}
                docker[f"copy-{copied.id}"] = shown(
                    f"copy-{copied.id}", int(str(cidr).split(".")[2]), copied.name
                )
                pairs[f"copy-{copied.id}"] = copied


NUMBERS = st.integers(1, 4)


@given(
    cluster=st.sets(NUMBERS),
    listed=st.dictionaries(st.sampled_from("abcd"), st.tuples(NUMBERS, NUMBERS), max_size=4),
    paired=st.dictionaries(st.sampled_from("abcdxy"), NUMBERS, max_size=4),
)
def test_once_carried_out_docker_shows_each_network_once_and_nothing_is_left_to_do(
    cluster: set[int], listed: dict[str, tuple[int, int]], paired: dict[str, int]
) -> None:
    networks = {(made := network(number)).id: made for number in cluster}
    kept = set(networks)
    # Docker itself keeps names apart; subnets are kept apart by their reservations.
    docker: dict[str, EngineNetwork] = {}
    for engine_id, (number, subnet) in listed.items():
        names = {entry.name for entry in docker.values()}
        cidrs = {cidr for entry in docker.values() for cidr in entry.subnets}
        entry = shown(engine_id, subnet, f"n{number}")
        free = number in cluster or subnet not in cluster
        if entry.name not in names and not entry.subnets & cidrs and free:
            docker[engine_id] = entry
    pairs = {engine_id: network(number) for engine_id, number in paired.items()}
    for _ in range(2):
        carry_out(compare(networks, list(docker.values()), pairs), networks, docker, pairs)
    assert compare(networks, list(docker.values()), pairs) == []
    assert sorted(entry.name for entry in docker.values()) == sorted(
        one.name for one in networks.values()
    )
    assert kept <= networks.keys(), "no step removes anything from the cluster"
