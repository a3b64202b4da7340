"""The package as a whole: names, version, errors, and what importing it costs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import pyvxlan


def test_every_public_name_is_there():
    for name in pyvxlan.__all__:
        assert hasattr(pyvxlan, name), name


def test_the_version_is_that_of_the_distribution():
    assert pyvxlan.__version__ == importlib.metadata.version("pyvxlan")


def test_a_malformed_packet_can_be_caught_as_the_root_and_as_value_error():
    for kind in (pyvxlan.PyvxlanError, ValueError):
        with pytest.raises(kind):
            pyvxlan.decap(b"")


def test_a_refusal_keeps_its_kind_and_errno():
    error = pyvxlan.ForwarderRefusedError("system", "no", 13)
    assert (error.kind, error.errno, str(error)) == ("system", 13, "no")


def test_importing_the_library_brings_neither_the_daemon_nor_asyncio():
    code = "import sys, pyvxlan; print(*sys.modules)"
    listing = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"asyncio", "msgpack", "pyroute2", "aiohttp", "pyvxlan.daemon"} & set(listing)
