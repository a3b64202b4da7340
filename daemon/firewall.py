"""What a host's rules do to a datagram: nftables' and iptables' rulesets, walked. Pure.

Rules know more conditions than are understood here. One that is not understood may hold or not; a
walk whose end depends on it ends as unknown, so that nothing is claimed that is not sure.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

PROTOCOLS: Mapping[str, int] = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ipv6-icmp": 58}
ACTIONS = frozenset({"accept", "drop", "reject", "return", "jump", "goto"})
DEPTH = 16
"""How deep chains may call each other; the kernel allows as many (NFT_JUMP_STACK_SIZE)."""

Holds: TypeAlias = bool | None
"""Whether a condition holds; None is not known."""
End: TypeAlias = Literal["accept", "drop", "unknown", "return"]


@dataclass(frozen=True, slots=True)
class Datagram:
    """The first one of a flow, as rules see it: `protocol` is the number in the IP header."""

    protocol: int
    port: int
    ifname: str
    """Where it comes in."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: whether it is for the datagram, what it then does, and how it is written."""

    holds: Holds
    action: str = ""
    target: str = ""
    text: str = ""


@dataclass(slots=True)
class Chain:
    """Rules in order. Without a hook it is only called by others."""

    name: str
    hook: str = ""
    policy: str = "accept"
    rules: list[Rule] = field(default_factory=list)


Chains: TypeAlias = Mapping[str, Chain]


def blockers(rulesets: Iterable[Chains], hook: str) -> list[str]:
    """Names the rules, or the policies, that surely drop the datagram at a hook."""
    found = []
    for chains in rulesets:
        for chain in chains.values():
            if chain.hook == hook:
                end, why = _walk(chains, chain, 0)
                if end == "drop":
                    found.append(why)
    return found


def _walk(chains: Chains, chain: Chain, depth: int) -> tuple[End, str]:
    for rule in chain.rules:
        if rule.holds is False or not rule.action:
            continue
        end, why = _act(chains, chain, rule, depth)
        if end == "return" and rule.action == "jump":
            continue
        if end == "return" and chain.hook:
            end, why = _policy(chain)
        if rule.holds is None:
            # It may hold. What it would drop may still come through; what it would let through or
            # send elsewhere, nobody can tell.
            if end == "drop":
                continue
            return "unknown", ""
        return end, why
    return _policy(chain) if chain.hook else ("return", "")


def _policy(chain: Chain) -> tuple[End, str]:
    """What a chain of the kernel's does to what none of its rules decided."""
    return ("drop" if chain.policy == "drop" else "accept"), f"policy of chain {chain.name}"


def _act(chains: Chains, chain: Chain, rule: Rule, depth: int) -> tuple[End, str]:
    match rule.action:
        case "accept":
            return "accept", ""
        case "drop" | "reject":
            return "drop", f"{rule.text} in chain {chain.name}"
        case "jump" | "goto":
            target = chains.get(rule.target)
            if target is None or depth >= DEPTH:
                return "unknown", ""
            return _walk(chains, target, depth + 1)
    return "return", ""


# nftables: `nft -j list ruleset`


def nftables(document: Mapping[str, Any], datagram: Datagram) -> list[Chains]:
    """Reads nftables' rules, a set of chains for each table; tables of other families are left."""
    tables: dict[tuple[str, str], dict[str, Chain]] = {}
    for entry in document.get("nftables", ()):
        if chain := entry.get("chain"):
            where = tables.setdefault((chain["family"], chain["table"]), {})
            where[chain["name"]] = Chain(
                f"{chain['family']} {chain['table']} {chain['name']}",
                chain.get("hook", "") if chain.get("type") == "filter" else "",
                chain.get("policy", "accept"),
            )
        elif rule := entry.get("rule"):
            where = tables.get((rule["family"], rule["table"]), {})
            if rule["chain"] in where:
                where[rule["chain"]].rules.append(_nft_rule(rule["expr"], datagram))
    return [chains for (family, _), chains in tables.items() if family in {"ip", "ip6", "inet"}]


def _nft_rule(expressions: Sequence[Mapping[str, Any]], datagram: Datagram) -> Rule:
    conditions: list[Holds] = []
    for expression in expressions:
        for name, content in expression.items():
            if name == "match":
                conditions.append(_nft_match(content, datagram))
            elif name in ACTIONS:
                target = content.get("target", "") if isinstance(content, dict) else ""
                return Rule(_all(conditions), name, target, f"a rule with {name}")
            elif name in {"xt", "vmap", "fib", "limit", "quota", "connlimit"}:
                conditions.append(None)
    return Rule(_all(conditions))


def _nft_match(match: Mapping[str, Any], datagram: Datagram) -> Holds:
    left, right = match["left"], match["right"]
    holds: Holds = None
    if not isinstance(left, dict):
        return None
    if payload := left.get("payload"):
        match payload.get("protocol"), payload.get("field"):
            case "udp" | "tcp" as protocol, wanted if PROTOCOLS[protocol] != datagram.protocol:
                holds = False if wanted else None
            case "udp" | "tcp" | "th", "dport":
                holds = _among(right, datagram.port)
            case "ip", "protocol":
                holds = _among(right, datagram.protocol)
    elif meta := left.get("meta"):
        match meta.get("key"):
            case "l4proto":
                holds = _among(right, datagram.protocol)
            case "iifname" | "iif":
                holds = _among(right, datagram.ifname)
    elif left.get("ct", {}).get("key") == "state":
        holds = _among(right, "new")
    if match.get("op") == "!=" and holds is not None:
        return not holds
    return holds


def _among(right: object, value: str | int) -> Holds:
    """Whether a value is what stands at the right of a match: one, a set, a range."""
    if isinstance(right, dict):
        if "range" in right:
            low, high = right["range"]
            numbers = isinstance(low, int) and isinstance(value, int)
            return low <= value <= high if numbers else None
        right = right.get("set")
    if isinstance(right, list):
        found = [_among(one, value) for one in right]
        return True if True in found else None if None in found else False
    if isinstance(right, str) and isinstance(value, int):
        return PROTOCOLS[right] == value if right in PROTOCOLS else None
    if isinstance(right, str) and (right.startswith("@") or right.endswith("*")):
        return None
    return right == value if isinstance(right, str | int) else None


# iptables: `iptables-save`, `ip6tables-save`


def iptables(text: str, datagram: Datagram) -> Chains:
    """Reads iptables' table `filter`; its hooks are written as nftables does."""
    chains: dict[str, Chain] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and line.startswith(":"):
            name, policy, *_ = line[1:].split()
            hook = name.lower() if name in {"INPUT", "FORWARD", "OUTPUT"} else ""
            chains[name] = Chain(f"{name} of iptables", hook, policy.lower())
        elif table == "filter" and line.startswith("-A "):
            _, name, *words = shlex.split(line)
            if name in chains:
                chains[name].rules.append(_iptables_rule(words, line, datagram))
    return chains


def _iptables_rule(words: Sequence[str], line: str, datagram: Datagram) -> Rule:
    conditions: list[Holds] = []
    action = target = ""
    for negated, option, value in _options(words):
        match option:
            case "-p":
                holds: Holds = PROTOCOLS.get(value) == datagram.protocol or value == "all"
            case "--dport" | "--dports":
                holds = any(_in_range(part, datagram.port) for part in value.split(","))
            case "--ctstate" | "--state":
                holds = "NEW" in value.split(",")
            case "-i":
                holds = None if value.endswith("+") else value == datagram.ifname
            case "-j" | "-g":
                verb = value.lower()
                known = verb in {"accept", "drop", "reject", "return"}
                action = verb if known else "goto" if option == "-g" else "jump"
                target = "" if known else value
                continue
            case "-m" | "--reject-with" | "--comment" | "--log-prefix" | "--log-level":
                continue
            case _:
                holds = None
        conditions.append(holds if holds is None or not negated else not holds)
    if target in {"LOG", "MARK", "CONNMARK", "NFLOG", "TRACE"}:
        return Rule(_all(conditions))
    return Rule(_all(conditions), action, target, line)


def _options(words: Sequence[str]) -> Iterator[tuple[bool, str, str]]:
    """Gives each option with its value, and whether it is negated."""
    negated, option, values = False, "", list[str]()
    following = False
    for word in words:
        if word == "!":
            following = True
        elif word.startswith("-"):
            if option:
                yield negated, option, " ".join(values)
            negated, option, values, following = following, word, [], False
        else:
            values.append(word)
    if option:
        yield negated, option, " ".join(values)


def _in_range(text: str, port: int) -> bool:
    low, _, high = text.partition(":")
    try:
        return int(low or 0) <= port <= int(high or (low if ":" not in text else 65535))
    except ValueError:
        return False


def _all(conditions: Iterable[Holds]) -> Holds:
    found = list(conditions)
    return False if False in found else None if None in found else True
