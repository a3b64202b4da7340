"""Fixtures: worlds shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.world import World, world


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[World]:
    """Two hosts with daemons, for tests that make networks of their own in it."""
    with world("pa", 2) as made:
        yield made


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[World]:
    """Three hosts with daemons."""
    with world("pb", 3) as made:
        yield made
