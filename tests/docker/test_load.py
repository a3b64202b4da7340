"""Many things at once, at a small size; `benches.docker.load` does the same at full size."""

from __future__ import annotations

import pytest

from tests.docker.hosts import DockerWorld, create, gone, shown
from tests.docker.load import race, storm

pytestmark = pytest.mark.docker


def test_two_hosts_that_create_one_name_at_once_end_with_one_network(engines: DockerWorld) -> None:
    for number in range(3):
        assert race(engines, f"raced{number}").duplicates == 0


def test_containers_that_start_at_once_all_start_and_leave_nothing(engines: DockerWorld) -> None:
    create(engines[1], "stormy", "--subnet", "10.70.0.0/24")
    shown(engines[2], "stormy")
    outcome = storm(engines, "stormy", each=4, at_once=4)
    assert not outcome.failures
    assert outcome.started == outcome.wanted == 8
    engines[2].docker("network", "rm", "stormy")
    gone(engines[1], "stormy")
