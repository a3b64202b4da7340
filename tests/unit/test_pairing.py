"""Which of Docker's networks is which: kept over restarts, and over what became of the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.plugin.pairing import DOCUMENT, Pairing, held_by_itself
from tests.unit.test_comparison import network

ONE, TWO = network(1), network(2)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalRecords]:
    made = LocalRecords(tmp_path)
    yield made
    made.close()


def test_pairs_hidden_and_doomed_outlive_the_daemon(local: LocalRecords) -> None:
    pairing = Pairing(local)
    pairing.join("a", ONE)
    pairing.join("b", TWO)
    assert pairing.part("b", doomed=True) == TWO
    pairing.settle(TWO.id, hidden=True)
    pairing.join("c", network(3))
    pairing.part("c", doomed=True)
    again = Pairing(local)
    assert again.pairs == {"a": ONE}
    assert again.hidden == {TWO.id}
    assert again.doomed == {network(3).id}


def test_new_pair_is_on_the_disk_when_that_is_asked_for(local: LocalRecords) -> None:
    pairing = Pairing(local)
    pairing.join("a", ONE)
    assert pairing.pairs == {"a": ONE}
    assert Pairing(local).pairs == {}
    pairing.flush()
    assert Pairing(local).pairs == {"a": ONE}


def test_doomed_network_is_so_before_its_pair_is_gone(local: LocalRecords) -> None:
    pairing = Pairing(local)
    pairing.join("a", ONE)
    pairing.part("a", doomed=True)
    document = local.document(DOCUMENT)
    assert (document["pairs"], document["doomed"]) == ({}, [ONE.id])


def test_hidden_network_that_docker_gets_again_is_hidden_no_more(local: LocalRecords) -> None:
    pairing = Pairing(local)
    pairing.settle(ONE.id, hidden=True)
    pairing.join("a", ONE)
    assert pairing.hidden == frozenset()
    pairing.settle(TWO.id, hidden=True)
    pairing.forget_hidden({TWO.id})
    assert Pairing(local).hidden == frozenset()


def test_networks_are_found_by_their_ids_and_subnets(local: LocalRecords) -> None:
    pairing = Pairing(local)
    pairing.join("a", ONE)
    assert pairing.engine_id(ONE.id) == "a"
    assert pairing.engine_id(TWO.id) is None
    assert pairing.of_subnet(ONE.subnets[0].cidr) == ONE
    assert pairing.of_subnet(TWO.subnets[0].cidr) is None
    assert held_by_itself(ONE) == {ONE.subnets[0].gateway}


@pytest.mark.parametrize(
    "document",
    [
        {"pairs": {"a": {"network": ONE.id}}},
        {"pairs": {"a": {"network": ONE.id, "record": "{"}}},
        {"pairs": [1]},
        {"pairs": {}, "hidden": 3},
    ],
)
def test_unreadable_pairs_are_forgotten_and_nothing_else_fails(
    local: LocalRecords, document: dict[str, object]
) -> None:
    local.save_document(DOCUMENT, {"v": 1, **document})
    pairing = Pairing(local)
    assert (pairing.pairs, pairing.hidden, pairing.doomed) == ({}, frozenset(), frozenset())
    pairing.join("a", ONE)
    pairing.flush()
    assert Pairing(local).pairs == {"a": ONE}
