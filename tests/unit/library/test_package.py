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


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'pyvxlan' has no attribute 'encapsulate'"):
        pyvxlan.encapsulate  # noqa: B018


def test_using_the_library_brings_neither_the_daemon_nor_asyncio():
    loaded = modules_after("import pyvxlan; pyvxlan.encap, pyvxlan.Engine, pyvxlan.parse")
    assert "pyvxlan.engine" in loaded
    assert not {"asyncio", "msgpack", "pyroute2", "aiohttp", "pyvxlan.daemon"} & loaded


def test_importing_the_package_alone_imports_none_of_its_modules():
    ours = {name for name in modules_after("import pyvxlan") if name.startswith("pyvxlan")}
    assert ours == {"pyvxlan"}


def modules_after(code: str) -> set[str]:
    printing = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", printing], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())
