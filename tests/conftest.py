"""What all tests share: root tests never skip in silence."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: properties are about results, not about time.
settings.register_profile(
    "pyvxlan", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("pyvxlan")

# What a shell starts in the background ignores Ctrl-C, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test that needs root where there is none, with the remedy."""
    needs_root = item.get_closest_marker("root") or item.get_closest_marker("docker")
    if needs_root and os.geteuid() != 0:
        pytest.fail("needs root and network namespaces; leave these out with -m 'not root'")
