"""What only this host knows, on its own disk: host id, local endpoints, namespace names, sysctls.

Every change is on the disk when the call returns: written beside, synced, renamed. A file that is
not valid is set aside under another name, once, and reported; it never stops the daemon.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Set
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import ConflictError, InvalidError, NetError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.model import Endpoint, LocalEndpoint, Network, Sandbox

log = logging.getLogger(__name__)

T = TypeVar("T")


class LocalRecords:
    """The state directory of one daemon; holds a lock on it until `close`.

    Calls are synchronous and short: the files are small. Memory is the truth for reading, the
    disk for the next start.

    Args:
        state_dir: The directory; made if it is not there.
        events: Where it is noted which endpoints come and go.

    Raises:
        ConflictError: Another daemon uses this directory.
        NetError: The directory can't be written.
    """

    def __init__(self, state_dir: Path, events: Events | None = None) -> None:
        self._dir = state_dir
        self._events = events or Events()
        self._endpoints_dir = state_dir / "endpoints"
        self._withdrawn_dir = state_dir / "withdrawn"
        try:
            self._endpoints_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._withdrawn_dir.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NetError(
                f"state directory {state_dir} can't be used: {error.strerror}; "
                "make it writable or choose another with --state-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConflictError(
                f"state directory {state_dir} is in use by another daemon: "
                "stop that one, or give this one its own --state-dir and --run-dir"
            ) from error
        self._endpoints: dict[str, LocalEndpoint] = {}
        self._records: dict[str, Endpoint] = {}
        self._networks: dict[str, Network] = {}
        self._withdrawn: dict[str, Endpoint] = {}
        try:
            self._host = self._load_host()
            self._load_endpoints()
            self.host_id = self._ensure_host_id()
            """32 hex digits, made at the first start and never changed."""
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the directory. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def endpoints(self) -> Mapping[str, LocalEndpoint]:
        """This host's endpoints by id; what is here shall exist on this host."""
        return MappingProxyType(self._endpoints)

    @property
    def records(self) -> Mapping[str, Endpoint]:
        """Copies of the store's records of this host's endpoints, by id."""
        return MappingProxyType(self._records)

    @property
    def networks(self) -> Mapping[str, Network]:
        """Copies of the store's records of the networks that have endpoints here, by id."""
        return MappingProxyType(self._networks)

    def put(
        self,
        local: LocalEndpoint,
        *,
        endpoint: Endpoint | None = None,
        network: Network | None = None,
    ) -> None:
        """Keeps an endpoint of this host, with copies of what the store says of it.

        A copy that is not given stays as it was.
        """
        endpoint = endpoint or self._records.get(local.id)
        network = network or self._networks.get(local.network_id)
        document: dict[str, Any] = {
            "v": records.VERSION,
            "id": local.id,
            "network": local.network_id,
            "sandbox": {
                "path": local.sandbox.path,
                "inode": local.sandbox.inode,
                "pid": local.sandbox.pid,
                "start_ticks": local.sandbox.start_ticks,
            },
            "ifname": local.ifname,
            "gateway_ifname": local.gateway_ifname,
            "gateway_address": str(local.gateway_address) if local.gateway_address else None,
            "engine_id": local.engine_id,
            "names_route": local.names_route,
            "endpoint_record": records.emit_endpoint(endpoint).decode() if endpoint else None,
            "network_record": records.emit_network(network).decode() if network else None,
        }
        self._write(self._endpoints_dir / f"{local.id}.json", document)
        known = local.id in self._endpoints
        self._keep(local, endpoint, network)
        if not known:
            self._note("endpoint_added", local)

    def remove(self, endpoint_id: str) -> None:
        """Forgets an endpoint; one that is not here is no error."""
        _remove(self._endpoints_dir / f"{endpoint_id}.json")
        if here := self._endpoints.get(endpoint_id):
            self._note("endpoint_removed", here)
        self._records.pop(endpoint_id, None)
        gone = self._endpoints.pop(endpoint_id, None)
        if gone and not any(e.network_id == gone.network_id for e in self._endpoints.values()):
            self._networks.pop(gone.network_id, None)

    def _note(self, kind: str, local: LocalEndpoint) -> None:
        endpoint, network = self._records.get(local.id), self._networks.get(local.network_id)
        name = endpoint.name if endpoint else ""
        place = network.name if network else local.network_id[:12]
        self._events.note(kind, f"{name or local.id[:12]} on {place}, this host")

    @property
    def withdrawn(self) -> Mapping[str, Endpoint]:
        """Endpoints whose record in the store shall go and may be there still, by id."""
        return MappingProxyType(self._withdrawn)

    def withdraw(self, endpoint: Endpoint) -> None:
        """Notes that an endpoint's record shall go from the store, be it later."""
        if endpoint.id not in self._withdrawn:
            document = {
                "v": records.VERSION,
                "id": endpoint.id,
                "network": endpoint.network_id,
                "endpoint_record": records.emit_endpoint(endpoint).decode(),
            }
            self._write(self._withdrawn_dir / f"{endpoint.id}.json", document)
            self._withdrawn[endpoint.id] = endpoint

    def forget_withdrawn(self, endpoint_id: str) -> None:
        """Drops the note: the record is gone, or wanted after all."""
        if self._withdrawn.pop(endpoint_id, None):
            _remove(self._withdrawn_dir / f"{endpoint_id}.json")

    def netns_name(self, network_id: str) -> str:
        """Names a network's overlay namespace, `<counter>-<first 10 hex>`; stable while in use."""
        names = self._host["netns"]
        if network_id not in names:
            counter = self.next_netns_counter(network_id)
            names[network_id] = f"{counter}-{network_id[:10]}"
            self._host["netns_counter"] = counter
            self._save_host()
        return str(names[network_id])

    def next_netns_counter(self, network_id: str) -> int:
        """Gives the counter of a network's namespace: the one it has, or the next free one."""
        held = self._host["netns"].get(network_id)
        return int(held.split("-")[0]) if held else int(self._host["netns_counter"]) + 1

    def forget_netns(self, network_id: str) -> None:
        """Frees the namespace's name; the next one of this network gets a higher counter."""
        if self._host["netns"].pop(network_id, None) is not None:
            self._save_host()

    @property
    def netns_names(self) -> Mapping[str, str]:
        """Names of all overlay namespaces in use, by network id."""
        return MappingProxyType(dict(self._host["netns"]))

    @property
    def gateway_subnet(self) -> IPv4Network | None:
        """The gateway bridge's subnet, once it was chosen."""
        text = self._host["gateway_subnet"]
        return IPv4Network(text) if text else None

    def remember_gateway_subnet(self, subnet: IPv4Network | None) -> None:
        """Keeps the choice, so that containers keep their addresses over a restart."""
        self._host["gateway_subnet"] = str(subnet) if subnet else None
        self._save_host()

    @property
    def cluster(self) -> str:
        """Id of the cluster whose records these are; empty before the first comparison."""
        return str(self._host["cluster"])

    def remember_cluster(self, cluster: str) -> None:
        """Keeps the cluster's id; another one later means that the store was replaced."""
        if self._host["cluster"] != cluster:
            self._host["cluster"] = cluster
            self._save_host()

    def store_for(self, configured: str) -> str:
        """Gives the store to use for the one that is configured: where its cluster has moved."""
        return str(self._host["moved"].get(configured, configured))

    def remember_store(self, configured: str, url: str) -> None:
        """Keeps where the cluster of the configured store is, so that this one may be gone."""
        found = {"moved": {} if url == configured else {configured: url}, "store": url}
        if any(self._host[name] != value for name, value in found.items()):
            self._host |= found
            self._save_host()

    @property
    def last_store(self) -> str:
        """URL of the store that a daemon of this host used last; empty if that is not known."""
        return str(self._host["store"])

    @property
    def gateway_addresses(self) -> Set[IPv4Address]:
        """Addresses on the gateway bridge that endpoints hold."""
        return {e.gateway_address.ip for e in self._endpoints.values() if e.gateway_address}

    def remember_sysctl(self, name: str, old: str) -> None:
        """Keeps the value that a sysctl had before us; only the first one counts."""
        if name not in self._host["sysctls"]:
            self._host["sysctls"][name] = old
            self._save_host()

    def sysctls(self) -> Mapping[str, str]:
        """Values from before us, by sysctl."""
        return dict(self._host["sysctls"])

    def forget_sysctl(self, name: str) -> None:
        """Drops a remembered value once it was put back."""
        if self._host["sysctls"].pop(name, None) is not None:
            self._save_host()

    def document(self, name: str) -> Mapping[str, Any]:
        """Reads what `save_document` kept; empty if nothing, or if it is not valid any more."""
        path = self._dir / f"{name}.json"
        try:
            stored = json.loads(path.read_bytes())
            if isinstance(stored, dict):
                return stored
            raise ValueError("not an object")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._set_aside(path, error)
            return {}

    def save_document(self, name: str, document: Mapping[str, Any]) -> None:
        """Keeps a document of somebody who owns that name."""
        self._write(self._dir / f"{name}.json", document)

    def _keep(
        self, local: LocalEndpoint, endpoint: Endpoint | None, network: Network | None
    ) -> None:
        self._endpoints[local.id] = local
        if endpoint:
            self._records[local.id] = endpoint
        if network:
            self._networks[local.network_id] = network

    def _ensure_host_id(self) -> str:
        path = self._dir / "host-id"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            text = secrets.token_hex(16)
            write_file(path, f"{text}\n".encode())
        except (OSError, UnicodeDecodeError) as error:
            raise NetError(f"{path} can't be read: {error}") from error
        if not records.ID.fullmatch(text):
            raise InvalidError(
                f"{path} holds {text[:40]!r}, not 32 hex digits: put the old id back, or remove "
                "the file to get a new one (endpoints of this host are then collected as lost)"
            )
        return text

    def _load_host(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {
            "v": records.VERSION,
            "netns_counter": 0,
            "netns": {},
            "gateway_subnet": None,
            "sysctls": {},
            "cluster": "",
            "moved": {},
            "store": "",
        }
        path = self._dir / "host.json"
        try:
            stored = json.loads(path.read_bytes())
            host = fresh | {key: stored[key] for key in fresh if key in stored}
            int(host["netns_counter"])
            for name in ("cluster", "store"):
                host[name] = str(host[name])
            for name in ("netns", "sysctls", "moved"):
                host[name] = {str(key): str(value) for key, value in host[name].items()}
            for netns in host["netns"].values():
                int(netns.split("-")[0])
            if host["gateway_subnet"] is not None:
                IPv4Network(host["gateway_subnet"])
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self._set_aside(path, error)
            return fresh
        return host

    def _load_endpoints(self) -> None:
        for local, endpoint, network in self._read(self._endpoints_dir, _parse):
            self._keep(local, endpoint, network)
        for endpoint in self._read(self._withdrawn_dir, _parse_withdrawn):
            self._withdrawn[endpoint.id] = endpoint

    def _read(self, directory: Path, parse: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
        """Reads a directory's documents; one that is not valid is set aside."""
        for path in sorted(directory.glob("*.json")):
            try:
                document = json.loads(path.read_bytes())
                if document["id"] != path.stem:
                    raise InvalidError(f"the file holds endpoint {document['id']}")
                parsed = parse(document)
            except (OSError, ValueError, TypeError, KeyError, InvalidError) as error:
                self._set_aside(path, error)
            else:
                yield parsed

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_suffix(".invalid")
        log.error("local record set aside path=%s aside=%s cause=%r", path, aside, str(error))
        path.replace(aside)

    def _save_host(self) -> None:
        self._write(self._dir / "host.json", self._host)

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        write_file(path, json.dumps(document, indent=1).encode())


def write_file(path: Path, content: bytes) -> None:
    """Puts a file of root's alone (0600) on the disk, as a whole or not at all.

    Raises:
        NetError: It can't be written.
    """
    beside = path.with_suffix(".new")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise NetError(
            f"{path} can't be written: {error.strerror}; free space or repair the file system"
        ) from error


def _parse(document: Mapping[str, Any]) -> tuple[LocalEndpoint, Endpoint | None, Network | None]:
    sandbox = document["sandbox"]
    gateway = document["gateway_address"]
    local = LocalEndpoint(
        id=str(document["id"]),
        network_id=str(document["network"]),
        sandbox=Sandbox(
            path=str(sandbox["path"]),
            inode=int(sandbox["inode"]),
            pid=None if sandbox["pid"] is None else int(sandbox["pid"]),
            start_ticks=None if sandbox["start_ticks"] is None else int(sandbox["start_ticks"]),
        ),
        ifname=str(document["ifname"]),
        gateway_ifname=str(document["gateway_ifname"]),
        gateway_address=None if gateway is None else IPv4Interface(gateway),
        engine_id=str(document.get("engine_id", "")),
        names_route=bool(document.get("names_route", False)),
    )
    endpoint, network = document.get("endpoint_record"), document.get("network_record")
    return (
        local,
        records.parse_endpoint(local.network_id, local.id, endpoint.encode()) if endpoint else None,
        records.parse_network(local.network_id, network.encode()) if network else None,
    )


def _parse_withdrawn(document: Mapping[str, Any]) -> Endpoint:
    record = str(document["endpoint_record"]).encode()
    return records.parse_endpoint(str(document["network"]), str(document["id"]), record)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
