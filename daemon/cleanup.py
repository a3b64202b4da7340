"""`pyvxlan-daemon --cleanup`: takes back everything that the daemon ever made on this host.

The forwarder and its log, overlay namespaces with all that is in them, the gateway bridge with its
rules, changed sysctls, the records of this host and its endpoints in the store, local records and
sockets. Networks stay: they are the cluster's. So does the store. What fails does not stop the
rest; then the local records stay too, so that it can be tried again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Awaitable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

from pyvxlan.daemon import records, rundir
from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane.userspace import UserspaceDataplane
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.errors import DaemonError, InvalidError
from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Host
from pyvxlan.daemon.net import Net
from pyvxlan.daemon.networks import Networks
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

RUN_FILES = ("api.sock", "forwarder.*", "successor.*", "lock")
STATE_FILES = (
    "docker.*",
    "endpoints/*",
    "withdrawn/*",
    "mirror.db*",
    "host.json",
    "host.invalid",
    "host-id",
    "peer.pem",
    "lock",
)
DIRECTORIES = ("endpoints", "withdrawn", "netns")
NOWHERE = IPv4Address("0.0.0.0")


async def clean_up(settings: Settings, *, store_given: bool = True) -> Sequence[str]:
    """Removes everything; returns what could not be, each in a line for people.

    Args:
        settings: Where the daemon's directories are, and its store.
        store_given: Whether somebody named that store for this; else the one is meant that this
            host's daemon used last, whatever it was started with.

    Raises:
        ConflictError: A daemon runs here; nothing was removed.
    """
    failures: list[str] = []
    if not settings.run_dir.exists() and not settings.state_dir.exists():
        return failures
    with rundir.held(settings.run_dir):
        local = LocalRecords(settings.state_dir)
        try:
            await _remove_from_kernel(settings, local, failures)
            url = "" if store_given else local.last_store
            withdrawal = _withdraw(url or local.store_for(settings.store), local)
            await _tried("withdraw from the store", withdrawal, failures)
            if not failures:
                for endpoint_id in list(local.endpoints):
                    local.remove(endpoint_id)
        finally:
            local.close()
        if not failures:
            _remove_files(settings.state_dir, STATE_FILES)
            _remove_files(settings.run_dir, RUN_FILES)
    log.info("cleanup ended failures=%d", len(failures))
    return failures


async def _remove_from_kernel(settings: Settings, local: LocalRecords, failures: list[str]) -> None:
    dataplane = UserspaceDataplane(settings, NOWHERE)
    await _tried("end the forwarder", dataplane.stop(kill=True), failures)
    net = Net(settings, local)
    try:
        await _tried("remove links", net.cleanup(), failures)
    finally:
        await net.close()


async def _withdraw(url: str, local: LocalRecords) -> None:
    """Removes this host's endpoints, then its own records, from a store unless that is gone."""
    path = parse_url(url).path
    if path is not None and not path.exists():
        log.info("nothing to withdraw store=%s cause=there is no such file", url)
        return
    store = ClusterStore(await open_store(url))
    try:
        host = await _recorded_host(store, local.host_id)
        state = State(store, host)
        membership = Membership(store, state, host)
        rng = Random(secrets.randbits(64))  # noqa: S311 - not used: nothing is created
        networks = Networks(store, state, host, cluster=lambda: membership.cluster, rng=rng)
        endpoints = Endpoints(store, state, host, networks, token=membership.token, rng=rng)
        for endpoint_id, network_id in (await endpoints.owned(host.id)).items():
            if endpoint := await endpoints.read(network_id, endpoint_id):
                await endpoints.delete(endpoint)
        await membership.withdraw()
    finally:
        await store.close()


async def _recorded_host(store: Store, host_id: str) -> Host:
    """The host as the store has it; one without a VTEP if it has none."""
    item = await store.get(records.host_key(host_id))
    with contextlib.suppress(InvalidError):
        if item:
            return records.parse_host(host_id, item.value)
    return Host(host_id, "", NOWHERE, 0, "")


async def _tried(what: str, work: Awaitable[None], failures: list[str]) -> None:
    try:
        await work
    except DaemonError as error:
        failures.append(f"could not {what}: {error}")
    except ExceptionGroup as group:
        failures += [f"could not {what}: {error}" for error in group.exceptions]


def _remove_files(directory: Path, patterns: Sequence[str]) -> None:
    """Removes our files, and directories that are empty then."""
    for pattern in patterns:
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
    for path in (*(directory / name for name in DIRECTORIES), directory):
        with contextlib.suppress(OSError):
            path.rmdir()
