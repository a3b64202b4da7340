"""Why A does not reach B: the decision as a table of cases, and what crosses between daemons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.why import facts
from pyvxlan.daemon.why.case import Case, Side, Verdict
from pyvxlan.daemon.why.explain import Pair
from pyvxlan.daemon.why.facts import Entry, Facts, Fault, Resolution, Seen, Traced
from pyvxlan.daemon.why.judge import judge
from tests.unit.memory_net import endpoint, host, network

STOPS = (facts.ETH, facts.VETH, facts.PORT, facts.UNDERLAY)


def facts_of(number: int, **changed: Any) -> Facts:
    """A host on which all is as it should be."""
    other = 3 - number
    fine = Facts(
        host=f"h{number}",
        vtep=f"198.18.0.{number}",
        port=4789,
        datapath="forwarder",
        run_dir="/run/pyvxlan",
        netns="/run/pyvxlan/netns/1-ab",
        veth=f"v{number}",
        ifname="eth0",
        sandbox=f"/run/netns/c{number}",
        stale_s=None,
        stale_cause="",
        knows_peer=True,
        peer_vtep=f"198.18.0.{other}",
        vtep_link="under0",
        addresses=(f"198.18.0.{number} (under0)",),
        underlay_mtu=1500,
        mtu=1450,
        forwarder="",
        problems=(),
        repair_s=3.0,
        faults=(),
        fdb=Entry(f"02:0{other}", f"198.18.0.{other}", f"198.18.0.{other}"),
        neighbours=(Entry(f"10.0.0.{other}", f"02:0{other}", f"02:0{other}"),),
        pinged=True,
        resolution=None,
    )
    return replace(fine, **changed)


def traced(seen: str, **changed: Any) -> Traced:
    """Stops in words: `eth:request eth:reply`, with `!` for full size."""
    found = tuple(
        Seen(*word.strip("!").split(":"), facts.FULL if "!" in word else facts.SMALL)
        for word in seen.split()
    )
    return replace(Traced(found, STOPS, ()), **changed)


THERE = "eth:request veth:request vxlan0:request underlay:request"
BACK = "eth:reply veth:reply vxlan0:reply underlay:reply"
ALL = f"{THERE} {BACK}"
BIG = " ".join(f"{word}!" for word in ALL.split())
BIG_THERE = " ".join(f"{word}!" for word in THERE.split())


def verdict(
    seen_a: str = f"{ALL} {BIG}",
    seen_b: str = f"{ALL} {BIG}",
    *,
    a: dict[str, Any] | None = None,
    b: dict[str, Any] | None = None,
    trace: dict[str, Any] | None = None,
    trace_b: dict[str, Any] | None = None,
    unheard: str = "",
) -> Verdict:
    """Judges two hosts on which all is fine but what is given."""
    side = Side("web", "h1", "10.0.0.1", facts_of(1, **(a or {})), traced(seen_a, **(trace or {})))
    other = Side(
        "db", "h2", "10.0.0.2", facts_of(2, **(b or {})), traced(seen_b, **(trace_b or {}))
    )
    if unheard:
        other = Side("db", "h2", "10.0.0.2", unheard=unheard)
    return judge(Case("ov", side, other))


def test_all_fine_is_reachable() -> None:
    said = verdict()
    assert (said.reachable, said.code, said.also) == (True, "ok", ())
    assert [step.host for step in said.steps] == 4 * ["h1"] + 4 * ["h2"]


@pytest.mark.parametrize(
    ("seen_a", "seen_b", "code", "text"),
    [
        ("", "", "firewall", "does not come out of eth0"),
        ("eth:request", "", "pair", "eth0 in web"),
        ("eth:request veth:request", "", "bridge", "the frame is lost on br0 of h1"),
        ("eth:request veth:request vxlan0:request", "", "firewall", "does not leave h1"),
        (THERE, "", "udp_blocked", "does not come to h2"),
        (THERE, "underlay:request", "firewall", "comes to 198.18.0.2 of h2"),
        (THERE, "underlay:request vxlan0:request", "bridge", "br0 of h2"),
        (THERE, "underlay:request vxlan0:request veth:request", "pair", "eth0 in db"),
        (THERE, THERE, "firewall", "the kernel there does not answer"),
        (THERE, f"{THERE} eth:reply veth:reply", "bridge", "the answer is lost on br0 of h2"),
        (THERE, f"{THERE} eth:reply veth:reply vxlan0:reply", "firewall", "does not leave h2"),
        (THERE, ALL, "udp_blocked", "leaves h2 and does not come to h1"),
        (f"{THERE} underlay:reply", ALL, "firewall", "comes to 198.18.0.1 of h1"),
        (f"{THERE} underlay:reply vxlan0:reply", ALL, "bridge", "the answer is lost on br0 of h1"),
        (f"{THERE} underlay:reply vxlan0:reply veth:reply", ALL, "pair", "the answer"),
        (f"{ALL} {BIG_THERE}", ALL, "mtu", "carries less than 1500 bytes"),
        (f"{ALL} eth:request! veth:request! vxlan0:request!", ALL, "mtu", "do not pass"),
        (f"{ALL} {BIG_THERE}", f"{ALL} {BIG_THERE}", "firewall", "of full size"),
    ],
)
def test_where_a_frame_ends_says_why(seen_a: str, seen_b: str, code: str, text: str) -> None:
    said = verdict(seen_a, seen_b)
    assert (said.reachable, said.code) == (False, code), said.text
    assert text in said.text
    assert said.remedy


@pytest.mark.parametrize(
    ("drops", "code", "text"),
    [
        (("underlay_error",), "firewall", "the kernel refused to send"),
        (("port_full", "destination_unknown"), "fdb_missing", "(destination_unknown)"),
        (("underlay_full",), "dropped", "the underlay's queue was full"),
        (("of_a_later_version",), "dropped", "of_a_later_version"),
    ],
)
def test_drops_of_the_forwarder_say_why(drops: tuple[str, ...], code: str, text: str) -> None:
    said = verdict("eth:request veth:request vxlan0:request", "", trace={"drops": drops})
    assert said.code == code
    assert said.text.startswith("the forwarder on h1 drops the frame: ")
    assert text in said.text


@pytest.mark.parametrize(
    ("a", "b", "code", "text"),
    [
        ({"faults": (Fault(facts.ETH, "down"),)}, {}, "eth_down", "eth0 in web is down"),
        ({}, {"faults": (Fault(facts.VETH, "missing"),)}, "veth_missing", "h2"),
        ({"forwarder": "no answer"}, {}, "forwarder", "h1 does not answer: no answer"),
        ({"knows_peer": False}, {}, "unknown", "h1 does not know db"),
        ({"knows_peer": False, "stale_s": 7.0}, {}, "store_stale", "for 7 s"),
        ({"fdb": Entry("02:02", "", "198.18.0.2")}, {}, "fdb_missing", "h1 has no entry"),
        ({"fdb": Entry("02:02", "198.18.0.9", "198.18.0.9")}, {}, "vtep_wrong", "198.18.0.9"),
        ({"vtep": "fd98::1"}, {}, "vtep_wrong", "h1 has VTEP fd98::1 and h2 198.18.0.2: no tunnel"),
        ({}, {"port": 4790}, "port_differs", "h1 has UDP port 4789, the forwarder on h2 4790"),
        ({"peer_vtep": "198.18.0.9"}, {}, "vtep_wrong", "takes 198.18.0.9 for the VTEP of h2"),
        ({}, {"vtep_link": ""}, "vtep_wrong", "no interface of it has that address"),
        ({}, {"sandbox": ""}, "not_attached", "h2, and that host has not attached it"),
        (
            {"neighbours": (Entry("10.0.0.2", "", "02:02"),)},
            {},
            "neighbour_missing",
            "who asks for 10.0.0.2",
        ),
        ({"datapath": "kernel", "forwarder": "gone"}, {}, "firewall", "does not come out"),
    ],
)
def test_what_is_wrong_on_a_host_says_why(
    a: dict[str, Any], b: dict[str, Any], code: str, text: str
) -> None:
    said = verdict("", "", a=a, b=b)
    assert said.code == code, said.text
    assert text in said.text


def test_another_port_explains_what_looks_like_a_rule() -> None:
    kernel = {"datapath": "kernel", "port": 8472}
    said = verdict(THERE, "underlay:request", a=kernel, b={**kernel, "port": 8473})
    assert said.code == "port_differs"
    assert "the kernel's vxlan device on h2 8473" in said.text
    assert "the same kernel_port" in said.remedy


def test_what_is_wrong_where_the_frame_ended_counts_first() -> None:
    a = {"faults": (Fault(facts.PORT, "down"),)}
    b = {"faults": (Fault(facts.ETH, "down"),)}
    said = verdict(THERE, "underlay:request vxlan0:request veth:request", a=a, b=b)
    assert said.code == "eth_down"
    assert [one.code for one in said.also] == ["vxlan0_down"]


def test_a_frame_that_passes_is_believed() -> None:
    said = verdict(a={"fdb": Entry("02:02", "", "198.18.0.2")})
    assert (said.code, [one.code for one in said.also]) == ("ok", ["fdb_missing"])


def test_a_fault_that_nobody_has_words_for_is_told_all_the_same() -> None:
    said = verdict(b={"faults": (Fault(facts.BRIDGE, "stp_state"),)})
    assert [one.text for one in said.also] == ["stp_state of br0 is not as it should be"]


def test_full_frames_count_only_after_small_ones() -> None:
    mtu = {"faults": (Fault(facts.ETH, "mtu", "1000", "1450"),)}
    assert verdict(THERE, "", b=mtu).code == "udp_blocked"
    assert verdict(f"{ALL} {BIG_THERE}", f"{ALL} underlay:request!", b=mtu).code == "eth_mtu"
    assert verdict(f"{ALL} {BIG_THERE}", ALL, a={"underlay_mtu": 1400}).code == "mtu"


def test_a_container_that_knows_a_smaller_path_mtu_reaches() -> None:
    said = verdict(ALL, ALL, trace={"path_mtu": 1300})
    assert said.reachable
    assert [one.code for one in said.also] == ["mtu"]
    assert "at most 1300 bytes get to db" in said.also[0].text
    assert not verdict(ALL, ALL, trace={"path_mtu": 1450}).reachable


def test_a_host_that_does_not_answer_leaves_the_other_to_judge() -> None:
    silent = "h2's daemon does not answer"
    assert verdict(unheard=silent).reachable
    assert verdict(THERE, unheard=silent).code == "udp_blocked"
    said = verdict(THERE, unheard=silent, a={"pinged": False})
    assert said.code == "vtep_unreachable"
    assert silent in said.text
    waiting = "eth:request veth:request vxlan0:request"
    assert verdict(waiting, unheard=silent, a={"pinged": False}).code == "vtep_unreachable"


def test_the_kernels_refusal_is_told() -> None:
    said = verdict("", "", trace={"problem": "Operation not permitted"})
    assert "refuses to send to 10.0.0.2: Operation not permitted" in said.text
    said = verdict("", "", trace={"neighbour": facts.UNANSWERED})
    assert said.code == "neighbour_missing"


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Resolution("127.0.0.11", "db", ("10.0.0.2",)), "ok"),
        (Resolution("127.0.0.11", "db", ("10.0.0.9",)), "name"),
        (Resolution("127.0.0.11", "db", problem="no answer"), "name"),
    ],
)
def test_a_name_that_means_another_address_is_told(found: Resolution, code: str) -> None:
    assert verdict(a={"resolution": found}).code == code


def test_nothing_can_be_sent_from_a_host_that_does_not_answer() -> None:
    a = Side("web", "h1", "10.0.0.1", unheard="h1's daemon does not answer")
    b = Side("db", "h2", "10.0.0.2", facts_of(2))
    said = judge(Case("ov", a, b))
    assert said.code == "unheard"
    assert "h1's daemon does not answer" in said.text


def test_an_answer_that_a_rule_inside_keeps_is_no_success() -> None:
    said = verdict(trace={"refused": True})
    assert (said.reachable, said.code) == (False, "firewall")
    assert "the answer of db comes back to eth0 in web" in said.text
    wrong = {"faults": (Fault(facts.ETH, "mac", "02:aa", "02:01"),)}
    assert verdict(a=wrong, trace={"refused": True}).code == "eth_mac"
    assert verdict(b=wrong, trace={"refused": True}).code == "firewall"


def test_addresses_are_mended_by_commands_that_ip_takes() -> None:
    wanted = "10.0.0.2/24, fd00::2/64"
    inside = "nsenter --net=/run/netns/c2 ip address"
    for found, remedy in (
        ("none", f"{inside} add 10.0.0.2/24 dev eth0; {inside} add fd00::2/64 dev eth0"),
        ("10.0.0.2/32, fd00::2/64",
         f"{inside} del 10.0.0.2/32 dev eth0; {inside} add 10.0.0.2/24 dev eth0"),
    ):  # fmt: skip
        said = verdict(THERE, THERE, b={"faults": (Fault(facts.ETH, "address", found, wanted),)})
        assert (said.code, said.remedy) == ("eth_address", f"on h2: {remedy}")


def test_an_address_that_is_not_asked_for_explains_no_loss() -> None:
    lacking = Fault(facts.ETH, "address", "10.0.0.2/24", "10.0.0.2/24, fd00::2/64")
    said = verdict(THERE, THERE, b={"faults": (lacking,)})
    assert said.code == "firewall"
    assert [one.code for one in said.also] == ["eth_address"]


def test_on_one_host_the_bridge_is_told_of_once_and_tunnels_never() -> None:
    wrong = (Fault(facts.BRIDGE, "down"), Fault(facts.PORT, "down"))
    held = facts_of(1, faults=wrong, forwarder="gone", fdb=None, neighbours=())
    sides = [
        Side(
            name,
            "h1",
            f"10.0.0.{number}",
            held,
            traced("eth:request veth:request" if number == 1 else ""),
        )
        for number, name in ((1, "web"), (2, "db"))
    ]
    said = judge(Case("ov", *sides))
    assert said.code == "bridge_down"
    assert said.also == ()
    assert [step.stop for step in said.steps] == ["eth", "veth", "veth", "eth"]


texts = st.text(max_size=9)
entries = st.builds(Entry, texts, texts, texts)
held_facts = st.builds(
    Facts,
    faults=st.lists(st.builds(Fault, texts, texts, texts, texts), max_size=2).map(tuple),
    neighbours=st.lists(entries, max_size=2).map(tuple),
    addresses=st.lists(texts, max_size=2).map(tuple),
    problems=st.lists(texts, max_size=2).map(tuple),
    fdb=st.none() | entries,
    resolution=st.none() | st.builds(Resolution, texts, texts, st.just(("1",)), texts),
    stale_s=st.none() | st.floats(0, 1e9),
    repair_s=st.floats(0, 1e9),
)


@given(held_facts)
def test_facts_are_read_back_as_written(held: Facts) -> None:
    assert facts.parse(Facts, facts.emit(held)) == held


def test_a_trace_is_read_back_as_written() -> None:
    held = traced(ALL, drops=("underlay_mtu",), path_mtu=9)
    assert facts.parse(Traced, facts.emit(held)) == held


def test_what_an_older_daemon_does_not_say_has_its_default() -> None:
    said = facts.emit(traced(ALL))
    del said["refused"]
    assert facts.parse(Traced, said) == traced(ALL)


@pytest.mark.parametrize("wrong", [None, 7, [], {}, {"seen": 3}, {"seen": [{"stop": 1}]}])
def test_what_does_not_fit_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidError, match="not understood"):
        facts.parse(Traced, wrong)


def test_a_question_is_read_back_as_written() -> None:
    a, b = endpoint(1, network(), host(1)), endpoint(2, network(), host(2))
    pair = Pair(a, b, b.addresses[0].ip, "db")
    assert Pair.parse(pair.emit()) == pair


@pytest.mark.parametrize(
    "changed",
    [
        {"network": 7},
        {"own": {}},
        {"peer": {"id": "x", "record": "{}"}},
        {"toward": "10.9.9.9"},
        {"toward": "nowhere"},
        {"name": "two words"},
        {"name": None},
    ],
)
def test_a_question_that_is_none_is_refused(changed: dict[str, object]) -> None:
    a, b = endpoint(1, network(), host(1)), endpoint(2, network(), host(2))
    with pytest.raises(InvalidError):
        Pair.parse(Pair(a, b, b.addresses[0].ip).emit() | changed)
