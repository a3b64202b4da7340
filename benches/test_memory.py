"""The benchmark of memory and updates passes its own checks, at a small size. Needs root."""

from __future__ import annotations

import pytest

from benches.memory import BATCH, measured
from benches.net.__main__ import build_load


@pytest.mark.root
def test_memory_and_updates_are_measured():
    build_load()
    figures = measured(rounds=1, seconds=0.2, entries=2 * BATCH, networks=5)
    assert figures["datagrams that crossed meanwhile, none lost"]["pyvxlan"][0] > 0
