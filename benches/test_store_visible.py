"""The benchmark of how soon other hosts know a network, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches.store.allocate import store_url
from benches.store.visible import LIMIT_MS, LIMITED, measured


@pytest.mark.parametrize("kind", sorted(LIMITED))
async def test_network_is_known_elsewhere_at_once(kind: str, tmp_path: Path) -> None:
    with store_url(kind, tmp_path) as url:
        _, known = await measured(url, tmp_path, networks=10)
    assert known.median < LIMIT_MS
