"""Docker's plug-in protocol: request bodies into values. Pure.

The names of fields are those of moby's libnetwork/drivers/remote/api and
libnetwork/ipams/remote/api, the bodies as dockerd 20.10 sends them
and as later ones do by their source. What a newer Docker adds is ignored; what is missing is empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pyvxlan.daemon.errors import InvalidError

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
ENABLE_IPV6 = "com.docker.network.enable_ipv6"
GATEWAY_TYPE = "com.docker.network.gateway"
ENDPOINT_NAME = "com.docker.network.endpoint.name"

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """`IpamDriver.RequestPool`; an empty `pool` is to be chosen."""

    pool: str
    sub_pool: str
    v6: bool


@dataclass(frozen=True, slots=True)
class PoolRelease:
    """`IpamDriver.ReleasePool`."""

    pool_id: str


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """`IpamDriver.RequestAddress`; an empty `address` is to be chosen."""

    pool_id: str
    address: str
    gateway: bool = False
    name: str = ""
    """The container's name; only Docker 29 and later tell."""


@dataclass(frozen=True, slots=True)
class AddressRelease:
    """`IpamDriver.ReleaseAddress`."""

    pool_id: str
    address: str


@dataclass(frozen=True, slots=True)
class PoolData:
    """One subnet of a network, as IPAM gave it; addresses with their prefix length."""

    pool: str
    gateway: str
    space: str
    aux: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkCreation:
    """`NetworkDriver.CreateNetwork`. `options` are those of `--opt`; Docker tells no name."""

    network_id: str
    pools: tuple[PoolData, ...]
    options: Mapping[str, str]
    internal: bool = False
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class NetworkDeletion:
    """`NetworkDriver.DeleteNetwork`."""

    network_id: str


@dataclass(frozen=True, slots=True)
class EndpointCreation:
    """`NetworkDriver.CreateEndpoint`; what is empty was not chosen."""

    network_id: str
    endpoint_id: str
    address: str = ""
    address6: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class EndpointCall:
    """What names an endpoint and no more: DeleteEndpoint, EndpointOperInfo, Leave."""

    network_id: str
    endpoint_id: str


@dataclass(frozen=True, slots=True)
class JoinCall:
    """`NetworkDriver.Join`."""

    network_id: str
    endpoint_id: str
    sandbox_key: str


Request: TypeAlias = (
    PoolRequest
    | PoolRelease
    | AddressRequest
    | AddressRelease
    | NetworkCreation
    | NetworkDeletion
    | EndpointCreation
    | EndpointCall
    | JoinCall
)


def parse(method: str, body: bytes) -> Request | None:
    """Reads a request; None for one whose body says nothing that matters here.

    Raises:
        InvalidError: The body is not what the method takes; the message names the field.
    """
    reader = _READERS.get(method)
    if reader is None:
        return None
    if not body:
        # Docker sends a call again whose answer it lost, and by then has used up the body.
        raise InvalidError(
            f"{method}: pyvxlan-daemon ended while it did that, and Docker asked it again without "
            "saying what: try again"
        )
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{method}: the body is not JSON ({body[:40]!r})") from error
    if not isinstance(document, dict):
        raise InvalidError(f"{method}: the body is not an object")
    try:
        return reader(document)
    except InvalidError as error:
        raise InvalidError(f"{method}: {error}") from error


def _read_pool_request(body: Json) -> PoolRequest:
    return PoolRequest(_text(body, "Pool"), _text(body, "SubPool"), _flag(body, "V6"))


def _read_address_request(body: Json) -> AddressRequest:
    options = _object(body, "Options")
    return AddressRequest(
        _text(body, "PoolID"),
        _text(body, "Address"),
        gateway=options.get("RequestAddressType") == GATEWAY_TYPE,
        name=_text(options, ENDPOINT_NAME),
    )


def _read_network(body: Json) -> NetworkCreation:
    options = _object(body, "Options")
    return NetworkCreation(
        _text(body, "NetworkID", needed=True),
        tuple(_read_pool(entry) for key in ("IPv4Data", "IPv6Data") for entry in _list(body, key)),
        {key: str(value) for key, value in _object(options, GENERIC).items()},
        internal=_flag(options, INTERNAL),
        ipv6=_flag(options, ENABLE_IPV6),
    )


def _read_pool(entry: Json) -> PoolData:
    aux = _object(entry, "AuxAddresses")
    return PoolData(
        _text(entry, "Pool"),
        _text(entry, "Gateway"),
        _text(entry, "AddressSpace"),
        {name: str(address) for name, address in aux.items()},
    )


def _read_endpoint(body: Json) -> EndpointCreation:
    interface = _object(body, "Interface")
    return EndpointCreation(
        *_ids(body),
        _text(interface, "Address"),
        _text(interface, "AddressIPv6"),
        _text(interface, "MacAddress"),
    )


def _ids(body: Json) -> tuple[str, str]:
    return _text(body, "NetworkID", needed=True), _text(body, "EndpointID", needed=True)


_READERS: Mapping[str, Callable[[Json], Request]] = {
    "IpamDriver.RequestPool": _read_pool_request,
    "IpamDriver.ReleasePool": lambda body: PoolRelease(_text(body, "PoolID")),
    "IpamDriver.RequestAddress": _read_address_request,
    "IpamDriver.ReleaseAddress": lambda body: AddressRelease(
        _text(body, "PoolID"), _text(body, "Address")
    ),
    "NetworkDriver.CreateNetwork": _read_network,
    "NetworkDriver.DeleteNetwork": lambda body: NetworkDeletion(
        _text(body, "NetworkID", needed=True)
    ),
    "NetworkDriver.CreateEndpoint": _read_endpoint,
    "NetworkDriver.DeleteEndpoint": lambda body: EndpointCall(*_ids(body)),
    "NetworkDriver.EndpointOperInfo": lambda body: EndpointCall(*_ids(body)),
    "NetworkDriver.Leave": lambda body: EndpointCall(*_ids(body)),
    "NetworkDriver.Join": lambda body: JoinCall(*_ids(body), _text(body, "SandboxKey")),
}


def _text(body: Json, name: str, *, needed: bool = False) -> str:
    value = body.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value):
        raise InvalidError(f"field {name} is {value!r}, not text")
    return value


def _flag(body: Json, name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidError(f"field {name} is {value!r}, not true or false")
    return value


def _object(body: Json, name: str) -> Json:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidError(f"field {name} is {value!r}, not an object")
    return value


def _list(body: Json, name: str) -> list[Json]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InvalidError(f"field {name} is {value!r}, not a list of objects")
    return value
