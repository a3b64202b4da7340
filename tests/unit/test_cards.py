"""Which cards an underlay stands on, and what is said of their receive offload."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvxlan.daemon import cards


@pytest.mark.parametrize(
    ("joining", "level", "told"),
    [
        ({"eth0": True}, "ok", "of eth0 is on"),
        ({"eth0": True, "eth1": False}, "warning", "ethtool -K eth1 gro on"),
        ({"eth0": None, "eth1": True}, "ok", "of eth1 is on"),
    ],
)
def test_receive_offload(joining: dict[str, bool | None], level: str, told: str) -> None:
    found = cards.receive_offload_of(joining)
    assert found is not None
    assert (found.level, told in found.text) == (level, True)


def test_nothing_is_said_of_no_card() -> None:
    assert cards.receive_offload_of({}) is None
    assert cards.receive_offload_of({"eth0": None}) is None


def test_cards_are_found_below_bridge_bond_and_vlan(tmp_path: Path) -> None:
    for link, below in {
        "br0": ["bond0.7", "veth1"], "bond0.7": ["bond0"], "bond0": ["eth1", "eth0"],
        "eth0": [], "eth1": [], "veth1": [],
    }.items():  # fmt: skip
        (tmp_path / link).mkdir()
        for name in below:
            (tmp_path / link / f"lower_{name}").touch()
    for card in ("eth0", "eth1"):
        (tmp_path / card / "device").mkdir()
    assert list(cards.cards("br0", tmp_path)) == ["eth0", "eth1"]
    assert list(cards.cards("eth0", tmp_path)) == ["eth0"]
    assert list(cards.cards("veth1", tmp_path)) == []


def test_the_kernel_is_asked() -> None:
    assert isinstance(cards.joins("lo"), bool)
    assert cards.joins("no-such-link0") is None
