"""docs/dataplane.md tells of every drop reason and every counter, and of no other."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pyvxlan import DROP_REASONS, NetworkStats, UnderlayStats

PAGE = Path(__file__).parents[3] / "docs" / "dataplane.md"


def section(title: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_drop_reason_is_explained_in_the_order_of_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \| ([eiu, ]+) \| (.+) \| (.+) \|$", section("Drop reasons"), re.M
    )
    assert [reason for reason, *_ in rows] == list(DROP_REASONS)


@pytest.mark.parametrize("stats", [NetworkStats, UnderlayStats])
def test_every_counter_is_explained(stats):
    text = section("Counters")
    words = set(re.findall(r"`(\w+)`", text))
    for field in fields(stats):
        name = field.name
        prefix, _, rest = name.partition("_")
        assert name in words or {f"{prefix}_", rest} <= words, name
