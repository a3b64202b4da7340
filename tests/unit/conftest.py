"""Fixtures: daemons' control planes in memory, on one store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.cluster import Cluster, Node


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def one(cluster: Cluster) -> Node:
    return await cluster.start(1)


@pytest.fixture
async def two(cluster: Cluster, one: Node) -> Node:
    return await cluster.start(2)
