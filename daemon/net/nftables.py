"""The nftables table `pyvxlan`: masquerading for the gateway bridge, and a wall between its ports.

    table ip pyvxlan {
        chain postrouting {
            type nat hook postrouting priority srcnat; policy accept;
            ip saddr 172.18.0.0/16 oifname != "pyvxlan_gw" masquerade
        }
        chain forward {
            type filter hook forward priority filter; policy accept;
            iifname "pyvxlan_gw" oifname "pyvxlan_gw" drop
        }
    }

The table is always replaced as a whole, in one transaction: nobody ever sees half of it. Its family
is IPv4's alone: to masquerade makes the kernel track every connection of a family, the underlay's
too, and a table of both would make IPv6 pay for what nobody needs there. The kernel is asked
directly, so that no `nft` has to be installed.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TypeAlias

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, nlmsg
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    Cmp,
    Meta,
    Regs,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)

from pyvxlan.daemon.net.netlink import Netlink, body

TABLE = "pyvxlan"
NFPROTO_IPV4 = 2
FORMER_FAMILY = 1
"""NFPROTO_INET, IPv4 and IPv6 in one, of which the table was until the family said above."""
NF_INET_FORWARD = 2
NF_INET_POST_ROUTING = 4
NF_DROP = 0
NF_ACCEPT = 1
PRIORITY_FILTER = 0
PRIORITY_SRCNAT = 100

_SUBSYSTEM = NFNL_SUBSYS_NFTABLES << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NETWORK_HEADER = 1
_IPV4_SOURCE_OFFSET = 12
_IFNAMSIZ = 16
_NETLINK_HEADER_BYTES = 16

_Fields: TypeAlias = list[tuple[str, object]]
_Tree: TypeAlias = object
"""A decoded object: attributes as a dict, lists as lists, values as pyroute2 gives them."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of object: how it is written, how all of them are read."""

    message: type[nlmsg]
    new: int
    read: int
    table_attribute: str


_TABLES = _Kind(nft_table_msg, NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, "NFTA_TABLE_NAME")
_CHAINS = _Kind(nft_chain_msg, NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, "NFTA_CHAIN_TABLE")
_RULES = _Kind(nft_rule_msg, NFT_MSG_NEWRULE, NFT_MSG_GETRULE, "NFTA_RULE_TABLE")


def open_netfilter() -> Netlink:
    """Opens a netfilter socket of the calling thread's namespace."""
    return Netlink(NETLINK_NETFILTER)


def exists(netlink: Netlink) -> bool:
    """Whether the table is there, whatever it holds."""
    return any(_exists(netlink, family) for family in (NFPROTO_IPV4, FORMER_FAMILY))


def matches(netlink: Netlink, bridge: str, subnet: IPv4Network) -> bool:
    """Whether the table is as `replace` leaves it.

    What the kernel adds when it shows an object (handles, counters of use) is not compared.
    """
    return _match(
        _answers(netlink, _TABLES),
        _answers(netlink, _CHAINS),
        _answers(netlink, _RULES),
        bridge,
        subnet,
    )


def replace(netlink: Netlink, bridge: str, subnet: IPv4Network) -> None:
    """Makes the table what it has to be, in one step."""
    _transact(netlink, [*_removal(netlink), *_addition(bridge, subnet)])


def remove(netlink: Netlink) -> None:
    """Removes the table with all that is in it; none there is no error."""
    _transact(netlink, _removal(netlink))


def _objects(bridge: str, subnet: IPv4Network) -> list[tuple[_Kind, _Fields]]:
    """The table, its chains and rules, in the order in which they must be made."""
    return [
        (_TABLES, [("NFTA_TABLE_NAME", TABLE), ("NFTA_TABLE_FLAGS", 0)]),
        _chain("postrouting", "nat", NF_INET_POST_ROUTING, PRIORITY_SRCNAT),
        _rule(
            "postrouting",
            [
                *_source_in(subnet),
                *_equal(_meta(Meta.NFT_META_OIFNAME), _padded(bridge), Cmp.NFT_CMP_NEQ),
                _expression("masq", []),
            ],
        ),
        _chain("forward", "filter", NF_INET_FORWARD, PRIORITY_FILTER),
        _rule(
            "forward",
            [
                *_equal(_meta(Meta.NFT_META_IIFNAME), _padded(bridge)),
                *_equal(_meta(Meta.NFT_META_OIFNAME), _padded(bridge)),
                _drop(),
            ],
        ),
    ]


def _chain(name: str, kind: str, hook: int, priority: int) -> tuple[_Kind, _Fields]:
    hooked = [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]
    return _CHAINS, [
        ("NFTA_CHAIN_TABLE", TABLE),
        ("NFTA_CHAIN_NAME", name),
        ("NFTA_CHAIN_HOOK", {"attrs": hooked}),
        ("NFTA_CHAIN_POLICY", NF_ACCEPT),
        ("NFTA_CHAIN_TYPE", kind),
    ]


def _rule(chain: str, expressions: Sequence[object]) -> tuple[_Kind, _Fields]:
    return _RULES, [
        ("NFTA_RULE_TABLE", TABLE),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", list(expressions)),
    ]


def _expression(name: str, fields: _Fields) -> object:
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": fields})]}


def _meta(key: Meta) -> object:
    """Loads a property of the datagram into register 1."""
    return _expression(
        "meta", [("NFTA_META_KEY", int(key)), ("NFTA_META_DREG", int(Regs.NFT_REG_1))]
    )


def _equal(load: object, value: bytes, compare: Cmp = Cmp.NFT_CMP_EQ) -> list[object]:
    """Goes on with the rule only if what `load` puts into register 1 compares so with `value`."""
    return [
        load,
        _expression(
            "cmp",
            [
                ("NFTA_CMP_SREG", int(Regs.NFT_REG_1)),
                ("NFTA_CMP_OP", int(compare)),
                ("NFTA_CMP_DATA", _data(value)),
            ],
        ),
    ]


def _source_in(subnet: IPv4Network) -> list[object]:
    load = _expression(
        "payload",
        [
            ("NFTA_PAYLOAD_DREG", int(Regs.NFT_REG_1)),
            ("NFTA_PAYLOAD_BASE", _NETWORK_HEADER),
            ("NFTA_PAYLOAD_OFFSET", _IPV4_SOURCE_OFFSET),
            ("NFTA_PAYLOAD_LEN", 4),
        ],
    )
    mask = _expression(
        "bitwise",
        [
            ("NFTA_BITWISE_SREG", int(Regs.NFT_REG_1)),
            ("NFTA_BITWISE_DREG", int(Regs.NFT_REG_1)),
            ("NFTA_BITWISE_LEN", 4),
            ("NFTA_BITWISE_MASK", _data(subnet.netmask.packed)),
            ("NFTA_BITWISE_XOR", _data(bytes(4))),
        ],
    )
    _, compare = _equal(load, subnet.network_address.packed)
    return [load, mask, compare]


def _drop() -> object:
    verdict = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", NF_DROP)]})]}
    return _expression(
        "immediate",
        [("NFTA_IMMEDIATE_DREG", int(Regs.NFT_REG_VERDICT)), ("NFTA_IMMEDIATE_DATA", verdict)],
    )


def _data(value: bytes) -> object:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _padded(name: str) -> bytes:
    return name.encode().ljust(_IFNAMSIZ, b"\0")


def _removal(netlink: Netlink) -> list[tuple[nlmsg, int, int]]:
    # A kernel may lack the former family.
    families = [NFPROTO_IPV4, *([FORMER_FAMILY] if _exists(netlink, FORMER_FAMILY) else [])]
    # Deleting a table that is not there fails; making it first, if need be, never does.
    fields: _Fields = [("NFTA_TABLE_NAME", TABLE)]
    return [
        (_message(_TABLES, fields, family), _SUBSYSTEM | kind, flags)
        for family in families
        for kind, flags in ((NFT_MSG_NEWTABLE, NLM_F_CREATE), (NFT_MSG_DELTABLE, 0))
    ]


def _exists(netlink: Netlink, family: int) -> bool:
    return any(_ours(_TABLES, answer) for answer in _answers(netlink, _TABLES, family))


def _addition(bridge: str, subnet: IPv4Network) -> list[tuple[nlmsg, int, int]]:
    return [
        (_message(kind, fields), _SUBSYSTEM | kind.new, NLM_F_CREATE | NLM_F_APPEND)
        for kind, fields in _objects(bridge, subnet)
    ]


def _message(kind: _Kind, fields: _Fields, family: int = NFPROTO_IPV4) -> nlmsg:
    message = kind.message()
    message["nfgen_family"] = family
    message["attrs"] = fields
    return message


def _transact(netlink: Netlink, requests: Sequence[tuple[nlmsg, int, int]]) -> None:
    """Carries out all requests or none."""
    begin, end = nfgen_msg(), nfgen_msg()
    begin["res_id"] = end["res_id"] = NFNL_SUBSYS_NFTABLES
    netlink.batch(
        [
            (begin, _BATCH_BEGIN, 0),
            *((message, kind, flags | NLM_F_ACK) for message, kind, flags in requests),
            (end, _BATCH_END, 0),
        ]
    )


def _answers(netlink: Netlink, kind: _Kind, family: int = NFPROTO_IPV4) -> tuple[bytes, ...]:
    """All objects of a kind in tables of a family, as the kernel shows them, in its order."""
    request = body(nfgen_msg(), nfgen_family=family)
    try:
        return tuple(bytes(answer) for answer in netlink.dump(request, _SUBSYSTEM | kind.read))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            return ()
        raise


@functools.lru_cache(maxsize=4)
def _match(
    tables: tuple[bytes, ...],
    chains: tuple[bytes, ...],
    rules: tuple[bytes, ...],
    bridge: str,
    subnet: IPv4Network,
) -> bool:
    """Compares; remembered, since decoding takes 10 ms and the answers are mostly the same."""
    wanted = _objects(bridge, subnet)
    for kind, answers in ((_TABLES, tables), (_CHAINS, chains), (_RULES, rules)):
        ours = [
            _tree(_parsed(kind, body(_message(of, fields)))) for of, fields in wanted if of is kind
        ]
        found = [_tree(_parsed(kind, answer)) for answer in answers if _ours(kind, answer)]
        if len(found) != len(ours) or not all(map(_within, ours, found)):
            return False
    return True


def _ours(kind: _Kind, answer: bytes) -> bool:
    return bool(_parsed(kind, answer).get_attr(kind.table_attribute) == TABLE)


def _parsed(kind: _Kind, content: bytes | memoryview) -> nlmsg:
    length = _NETLINK_HEADER_BYTES + len(content)
    header = length.to_bytes(4, sys.byteorder) + bytes(12)
    message = kind.message(bytearray(header + bytes(content)))
    message.decode()
    return message


def _tree(value: object) -> _Tree:
    if isinstance(value, list):
        return [_tree(item) for item in value]
    if isinstance(value, dict) and "attrs" in value:
        return {name: _tree(content) for name, content in value["attrs"]}
    return value


def _within(wanted: _Tree, found: _Tree) -> bool:
    """Whether `found` says all that `wanted` says."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(name in found and _within(value, found[name]) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(map(_within, wanted, found))
    return wanted == found
