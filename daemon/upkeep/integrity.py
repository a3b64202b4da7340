"""Whether the records of a store fit each other: the invariants of docs/schema.md. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.kv.health import Finding, Level
from pyvxlan.daemon.model import Cidr, Endpoint, Host, Network
from pyvxlan.daemon.upkeep.content import Values, foreign, kind_of, shortened, summary

REPAIR = "repair or delete them in the store"


@dataclass(slots=True)
class Parsed:
    """The records of a store, as far as they are valid."""

    networks: dict[str, Network] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    """Owner's id by key."""
    pools: Mapping[Cidr, str] = field(default_factory=dict)
    config: records.ClusterConfig = field(default_factory=records.ClusterConfig)
    invalid: dict[str, str] = field(default_factory=dict)
    """What is wrong, by key."""
    newer: set[str] = field(default_factory=set)
    """Those among these keys that a newer pyvxlan has written."""


def parse(values: Values) -> Parsed:
    """Reads every durable record."""
    parsed = Parsed()
    for key, value in values.items():
        try:
            _read(parsed, key, value)
        except InvalidError as error:
            parsed.invalid[key] = str(error)
            if records.newer_version(value):
                parsed.newer.add(key)
    return parsed


def examine(values: Values) -> list[Finding]:
    """Compares the records of a store with each other.

    Args:
        values: All of the store, by key, as of one moment.
    """
    parsed = parse(values)
    newer = {key: parsed.invalid[key] for key in parsed.newer}
    wrong = {key: why for key, why in parsed.invalid.items() if key not in newer}
    findings = [
        _finding("records", "error", "not valid", _with_reasons(wrong), REPAIR),
        _finding(
            "records",
            "error",
            "of a newer version",
            _with_reasons(newer),
            "upgrade this pyvxlan",
        ),
        _finding("claims", "error", "claims without owner", _dangling(parsed), REPAIR),
        _finding("claims", "error", "owners without their claim", _unclaimed(parsed), REPAIR),
        _finding("claims", "error", "held by more than one", _contested(parsed), REPAIR),
        _finding("networks", "error", "endpoints of no network", _astray(parsed), REPAIR),
        _finding("networks", "error", "subnets that overlap", _overlaps(parsed), REPAIR),
        _finding("networks", "error", "pools and networks differ", _pools(parsed), REPAIR),
        _finding(
            "networks",
            "warning",
            "closed, and not removed",
            sorted(network.name for network in parsed.networks.values() if network.state == "down"),
            "run pyvxlan network rm again to finish",
        ),
        _finding(
            "foreign",
            "warning",
            "keys that are not pyvxlan's",
            foreign(values),
            "give pyvxlan a prefix of its own",
        ),
        *_dead_hosts(parsed, {key for key in values if key.startswith(records.ALIVE)}),
    ]
    found = [finding for finding in findings if finding]
    if not any(finding.level == "error" for finding in found):
        found.insert(0, Finding("ok", "records", f"{summary(values)}; all fit each other"))
    return found


def errors(values: Values) -> list[str]:
    """Lists what makes records unusable as a whole, each in a line."""
    return [f.text for f in examine(values) if f.level == "error"]


def _read(parsed: Parsed, key: str, value: bytes) -> None:
    kind, _, rest = key.partition("/")
    match kind:
        case "net":
            parsed.networks[rest] = records.parse_network(rest, value)
        case "host":
            parsed.hosts[rest] = records.parse_host(rest, value)
        case "ep":
            network_id, _, endpoint_id = rest.partition("/")
            parsed.endpoints[endpoint_id] = records.parse_endpoint(network_id, endpoint_id, value)
        case "netname" | "vni" | "vtep" | "own" | "ip" | "name" | "mac":
            parsed.claims[key] = records.parse_claim(value)
        case "gone":
            records.parse_gone(rest, value)
        case "pools":
            parsed.pools = records.parse_pools(value).used
        case "cfg":
            parsed.config = records.parse_config(value)
        case "meta":
            records.parse_meta(value)


def _owed(parsed: Parsed) -> Iterator[tuple[str, str, str]]:
    """Yields each claim that an owner must hold: its key, the owner's id, the owner's record."""
    for network in parsed.networks.values():
        record = records.network_key(network.id)
        yield records.network_name_key(network.name), network.id, record
        yield records.vni_key(network.vni), network.id, record
        for claim in records.network_claims(network):
            yield claim, network.id, record
    for host in parsed.hosts.values():
        yield records.vtep_key(host.vtep), host.id, records.host_key(host.id)
    for endpoint in parsed.endpoints.values():
        for claim in records.endpoint_claims(endpoint):
            key = records.endpoint_key(endpoint.network_id, endpoint.id)
            yield claim, endpoint.id, key


def _dangling(parsed: Parsed) -> list[str]:
    owed = {key for key, _, _ in _owed(parsed)}
    unreadable = {key.rpartition("/")[2] for key in parsed.invalid}
    return sorted(
        key
        for key, owner in parsed.claims.items()
        if key not in owed and owner not in unreadable and not _reserved(parsed, key, owner)
    )


def _reserved(parsed: Parsed, key: str, owner: str) -> bool:
    """Whether a host holds an address for an endpoint that is about to be made."""
    return key.startswith("ip/") and owner in parsed.hosts and key.split("/")[1] in parsed.networks


def _unclaimed(parsed: Parsed) -> list[str]:
    return sorted(
        f"{record} lacks {claim}"
        for claim, _, record in _owed(parsed)
        if claim not in parsed.claims and claim not in parsed.invalid
    )


def _contested(parsed: Parsed) -> list[str]:
    return sorted(
        f"{claim} of {record} is claimed by {parsed.claims[claim]}"
        for claim, owner, record in _owed(parsed)
        if parsed.claims.get(claim, owner) != owner
    )


def _astray(parsed: Parsed) -> list[str]:
    known = parsed.networks.keys() | {
        key.rpartition("/")[2] for key in parsed.invalid if kind_of(key) == "net"
    }
    return sorted(
        records.endpoint_key(endpoint.network_id, endpoint.id)
        for endpoint in parsed.endpoints.values()
        if endpoint.network_id not in known
    )


def _overlaps(parsed: Parsed) -> list[str]:
    subnets = [
        (subnet.cidr, network.name)
        for network in parsed.networks.values()
        for subnet in network.subnets
    ]
    subnets.sort(key=lambda entry: (entry[0].version, int(entry[0].network_address)))
    return [
        f"{one} of {name} and {other} of {other_name}"
        for (one, name), (other, other_name) in pairwise(subnets)
        if one.version == other.version and one.overlaps(other)
    ]


def _pools(parsed: Parsed) -> list[str]:
    if records.POOLS in parsed.invalid:
        return []
    actual = {
        subnet.cidr: network.id
        for network in parsed.networks.values()
        for subnet in network.subnets
    }
    # A host's is reserved for a network that is about to be made.
    owned = {cidr: owner for cidr, owner in parsed.pools.items() if owner not in parsed.hosts}
    differing = actual.items() ^ owned.items()
    return sorted(f"{cidr} of {network_id[:12]}" for cidr, network_id in set(differing))


def _dead_hosts(parsed: Parsed, alive: set[str]) -> Iterator[Finding | None]:
    counts: dict[str, int] = {}
    for endpoint in parsed.endpoints.values():
        counts[endpoint.host_id] = counts.get(endpoint.host_id, 0) + 1
    dead = {
        host_id: counts.get(host_id, 0)
        for host_id in parsed.hosts.keys() | counts.keys()
        if records.alive_key(host_id) not in alive
    }
    names = [
        f"{parsed.hosts[id_].name if id_ in parsed.hosts else id_[:12]} "
        f"({count} endpoint{'' if count == 1 else 's'})"
        for id_, count in dead.items()
    ]
    yield _finding(
        "hosts",
        "warning",
        "down",
        sorted(names),
        f"start their daemons, or they are collected after {parsed.config.gc_grace_s:g} s, as soon "
        "as another host is up",
    )
    up = len(parsed.hosts) - len(dead.keys() & parsed.hosts.keys())
    if not dead and parsed.hosts:
        yield Finding("ok", "hosts", f"{up} up, none down")


def _finding(
    what: str, level: Level, problem: str, cases: Sequence[str], remedy: str
) -> Finding | None:
    if not cases:
        return None
    return Finding(level, what, f"{problem} ({len(cases)}): {shortened(cases)}; {remedy}")


def _with_reasons(invalid: Mapping[str, str]) -> list[str]:
    return [f"{key} ({why})" for key, why in sorted(invalid.items())]
