"""The API's JSON documents: values into plain dictionaries, request bodies into specs.

docs/api.md lists every field. Addresses and MACs are text, MTUs bytes, times seconds.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from pyvxlan.daemon.config import suggestion
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.model import Endpoint, Host, LocalEndpoint, Network, Subnet, format_mac
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec, WhySpec

Document: TypeAlias = dict[str, Any]

DRIVER = "pyvxlan"
SCOPE = "global"


@dataclass(frozen=True, slots=True)
class View:
    """What is needed to show an endpoint by the names of what it belongs to."""

    networks: Mapping[str, Network]
    hosts: Mapping[str, Host]
    local: Mapping[str, LocalEndpoint]


def network_document(network: Network) -> Document:
    """A network as the API shows it."""
    return {
        "id": network.id,
        "name": network.name,
        "driver": DRIVER,
        "scope": SCOPE,
        "vni": network.vni,
        "subnets": [_subnet_document(subnet) for subnet in network.subnets],
        "mtu_bytes": network.mtu_bytes,
        "internal": network.internal,
        "attachable": network.attachable,
        "multicast": network.multicast,
        "options": dict(network.options),
        "labels": dict(network.labels),
        "created": network.created,
        "created_by": network.created_by,
        "state": network.state,
    }


def endpoint_document(endpoint: Endpoint, view: View) -> Document:
    """An endpoint as the API shows it; what is known on its own host only is null elsewhere."""
    network = view.networks.get(endpoint.network_id)
    host = view.hosts.get(endpoint.host_id)
    local = view.local.get(endpoint.id)
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "network": network.name if network else "",
        "network_id": endpoint.network_id,
        "host": host.name if host else "",
        "host_id": endpoint.host_id,
        "addresses": [str(address) for address in endpoint.addresses],
        "mac": format_mac(endpoint.mac),
        "aliases": list(endpoint.aliases),
        "hostname": endpoint.hostname,
        "container_id": endpoint.container_id,
        "local": local is not None,
        "ifname": local.ifname if local else None,
        "gateway_ifname": local.gateway_ifname or None if local else None,
        "gateway_address": str(local.gateway_address) if local and local.gateway_address else None,
        "sandbox": _sandbox_document(local) if local else None,
    }


def host_document(host: Host, *, alive: bool, is_self: bool) -> Document:
    """A host as the API shows it."""
    return {
        "id": host.id,
        "name": host.name,
        "vtep": str(host.vtep),
        "port": host.port,
        "version": host.version,
        "alive": alive,
        "self": is_self,
    }


def parse_network_request(body: object) -> NetworkSpec:
    """Reads the body of a request to create a network.

    Raises:
        InvalidError: A field is unknown, missing or of the wrong type.
    """
    values = _parse(body, _kinds(NetworkSpec), required=("name",))
    return NetworkSpec(**values)


def parse_attach_request(body: object) -> AttachSpec:
    """Reads the body of a request to attach: the fields of `AttachSpec` and `EndpointSpec`.

    Raises:
        InvalidError: A field is unknown, missing or of the wrong type.
    """
    kinds = _kinds(EndpointSpec) | {"network": "str", "sandbox": "str", "ifname": "str"}
    values = _parse(body, kinds, required=("network", "sandbox"))
    attachment = {
        name: values.pop(name) for name in ("network", "sandbox", "ifname") if name in values
    }
    return AttachSpec(endpoint=EndpointSpec(**values), **attachment)


def parse_why_request(body: object) -> WhySpec:
    """Reads the body of a question why.

    Raises:
        InvalidError: A field is unknown, missing or of the wrong type.
    """
    return WhySpec(**_parse(body, _kinds(WhySpec), required=("a", "b")))


def parse_empty_request(body: object) -> None:
    """Reads the body of a request that has no fields.

    Raises:
        InvalidError: It has some.
    """
    _parse(body, {}, required=())


def _subnet_document(subnet: Subnet) -> Document:
    return {
        "cidr": str(subnet.cidr),
        "gateway": str(subnet.gateway),
        "ip_range": str(subnet.ip_range) if subnet.ip_range else None,
        "aux_addresses": {name: str(address) for name, address in subnet.aux},
    }


def _sandbox_document(local: LocalEndpoint) -> Document:
    sandbox = local.sandbox
    return {
        "path": sandbox.path,
        "inode": sandbox.inode,
        "pid": sandbox.pid,
        "start_ticks": sandbox.start_ticks,
    }


def _kinds(spec: type[NetworkSpec | EndpointSpec | WhySpec]) -> dict[str, str]:
    """The fields of a spec with their annotations, which are text in its module."""
    return {field.name: str(field.type) for field in fields(spec)}


def _parse(body: object, kinds: Mapping[str, str], required: Sequence[str]) -> Document:
    if not isinstance(body, dict):
        raise InvalidError("the request's body must be a JSON object")
    values: Document = {}
    for name, value in body.items():
        if name not in kinds:
            hint = suggestion(name, list(kinds)) if kinds else "there are none here"
            raise InvalidError(f"unknown field {name!r}: {hint}")
        values[name] = _value(name, value, kinds[name])
    for name in required:
        if name not in values:
            raise InvalidError(f"field {name!r} is missing")
    return values


def _value(name: str, value: object, kind: str) -> object:
    match kind:
        case "str" if isinstance(value, str):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int | None" if value is None or (
            isinstance(value, int) and not isinstance(value, bool)
        ):
            return value
        case "tuple[str, ...]" if isinstance(value, list) and _all_text(value):
            return tuple(value)
        case "Mapping[str, str]" if isinstance(value, dict) and _all_text(value.values()):
            return dict(value)
    words = {
        "str": "text",
        "bool": "true or false",
        "int | None": "an integer",
        "tuple[str, ...]": "a list of texts",
        "Mapping[str, str]": "an object of texts",
    }
    raise InvalidError(f"field {name!r} is {reprlib.repr(value)}: must be {words[kind]}")


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
