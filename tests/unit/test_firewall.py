"""Rulesets of firewalls, walked for one datagram."""

from __future__ import annotations

import pytest

from pyvxlan.daemon import firewall
from pyvxlan.daemon.firewall import PROTOCOLS, Datagram

DATAGRAM = Datagram(PROTOCOLS["udp"], 4789, "under0")
INPUT = "*filter\n:INPUT {policy} [0:0]\n:FORWARD ACCEPT [0:0]\n:mine - [0:0]\n{rules}\nCOMMIT\n"


def saved(rules: str, policy: str = "ACCEPT") -> list[str]:
    """What drops the datagram, by iptables-save's text."""
    chains = firewall.iptables(INPUT.format(policy=policy, rules=rules), DATAGRAM)
    return firewall.blockers([chains], "input")


@pytest.mark.parametrize(
    ("rules", "policy", "closed"),
    [
        ("", "ACCEPT", False),
        ("", "DROP", True),
        ("-A INPUT -p udp -m udp --dport 4789 -j ACCEPT", "DROP", False),
        ("-A INPUT -p udp -m udp --dport 4000:5000 -j ACCEPT", "DROP", False),
        ("-A INPUT -p udp -m multiport --dports 53,4789 -j ACCEPT", "DROP", False),
        ("-A INPUT -p udp -m udp --dport 53 -j ACCEPT", "DROP", True),
        ("-A INPUT -p tcp -m tcp --dport 4789 -j ACCEPT", "DROP", True),
        ("-A INPUT -i lo -j ACCEPT", "DROP", True),
        ("-A INPUT -i under0 -j ACCEPT", "DROP", False),
        ("-A INPUT ! -i lo -j DROP", "ACCEPT", True),
        ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "DROP", True),
        ("-A INPUT -p udp -m udp --dport 4789 -j DROP", "ACCEPT", True),
        ("-A INPUT -j REJECT --reject-with icmp-port-unreachable", "ACCEPT", True),
        ("-A INPUT -j LOG\n-A INPUT -j DROP", "ACCEPT", True),
        ("-A INPUT -j mine\n-A mine -p udp -j DROP", "ACCEPT", True),
        ("-A INPUT -j mine\n-A mine -p udp -j RETURN\n-A mine -j DROP", "ACCEPT", False),
        ("-A INPUT -g mine\n-A mine -p tcp -j DROP\n-A INPUT -j DROP", "DROP", True),
        # What is not understood may let it through, so nothing is claimed.
        ("-A INPUT -s 198.18.0.0/24 -j ACCEPT", "DROP", False),
        ("-A INPUT -s 198.18.0.9/32 -j DROP", "ACCEPT", False),
        ("-A INPUT -s 198.18.0.9/32 -j DROP\n-A INPUT -j DROP", "ACCEPT", True),
        ("-A INPUT -m recent --set -j mine\n-A mine -j ACCEPT", "DROP", False),
        ("-A INPUT -j SOMETHING", "DROP", False),
    ],
)
def test_rules_of_iptables(rules: str, policy: str, closed: bool) -> None:
    assert bool(saved(rules, policy)) is closed


def test_what_closes_is_named() -> None:
    rule = "-A INPUT -p udp -m udp --dport 4789 -j DROP"
    assert saved(rule) == [f"{rule} in chain INPUT of iptables"]
    assert saved("", "DROP") == ["policy of chain INPUT of iptables"]


def test_other_tables_of_iptables_do_not_count() -> None:
    text = "*nat\n:INPUT DROP [0:0]\n-A INPUT -j DROP\nCOMMIT\n"
    assert firewall.blockers([firewall.iptables(text, DATAGRAM)], "input") == []
