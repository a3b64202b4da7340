"""Fixtures: two hosts with Docker Engines, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docker.hosts import DockerWorld, docker_world


@pytest.fixture(scope="module")
def engines() -> Iterator[DockerWorld]:
    """Two hosts on the embedded store, for tests that make networks of their own."""
    with docker_world("dk", 2, "--log-level", "debug") as made:
        yield made
