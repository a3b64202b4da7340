"""The web page in a real browser: what it shows, asks for, and does by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyvxlan.daemon.webviews import Readings, Views
from tests.chromium import Browser, Tab, chromium
from tests.unit.test_web import Site, peopled, site

ATTACKER = "attacker.example"
LIVE = "document.getElementById('live').textContent === 'live'"
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>"\'&\u202e'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium"), names=[ATTACKER]) as made:
        yield made


@pytest.fixture(scope="module")
def shown() -> Iterator[Site]:
    with peopled() as door, site(door) as made:
        yield made


@pytest.fixture
def tab(browser: Browser, shown: Site) -> Tab:
    """The page, live."""
    made = browser.tab()
    assert made.open(shown.url) == ""
    made.until(LIVE)
    return made


def table(tab: Tab, name: str) -> list[list[str]]:
    """The texts of a table's body."""
    found: list[list[str]] = tab.evaluate(
        f"[...document.getElementById('{name}-table').tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def test_page_shows_all_and_asks_for_nothing_from_outside(tab: Tab, shown: Site) -> None:
    tab.until("document.querySelector('#tunnels-table').textContent.includes('bit/s')")
    hosts = table(tab, "tunnels")
    assert [row[:2] for row in hosts] == [["host1 (this host)", "up"], ["host2", "up"]]
    assert "bit/s" in hosts[1][5]
    assert hosts[1][7:] == ["0.10 ms", "25.0 %", "1400"]
    assert [row[0] for row in table(tab, "networks")] == ["blue", "red"]
    assert [row[:3] for row in table(tab, "endpoints")] == [
        ["web", "blue", "host1"], ["base", "blue", "host2"],
    ]  # fmt: skip
    assert table(tab, "drops")[0] == ["blue", "ingress", "source mac unknown", "7"]
    assert "network added" in [row[1] for row in table(tab, "events")]
    drawn = tab.evaluate("document.getElementById('drawing').textContent")
    for text in ("host1", "host2", "web", "base", "blue"):
        assert text in drawn
    assert tab.evaluate("document.title") == "pyvxlan host1"
    assert {url for url in tab.requests() if not url.startswith(shown.url)} <= {"data:,"}
    assert tab.complaints() == []


CROSSED = """(() => {
  const texts = [...document.querySelectorAll("#drawing text")];
  const crossed = [];
  for (const line of document.querySelectorAll("#drawing polyline")) {
    for (let along = 0; along < line.getTotalLength(); along++) {
      const {x, y} = line.getPointAtLength(along);
      crossed.push(...texts.filter((text) => {
        const box = text.getBBox();
        return x > box.x && x < box.x + box.width && y > box.y && y < box.y + box.height;
      }).map((text) => text.textContent));
    }
  }
  return crossed;
})()"""


def test_no_line_of_the_picture_crosses_its_words(tab: Tab) -> None:
    said = "[...document.querySelectorAll('#drawing text')].map(text => text.textContent)"
    tab.until(f"{said}.includes('0.10 ms, 25.0 % lost')")
    assert tab.evaluate("document.querySelectorAll('#drawing polyline').length") == 1
    assert tab.evaluate(CROSSED) == []


def test_new_events_come_by_themselves(tab: Tab, shown: Site) -> None:
    shown.door.node.events.note("forwarder_replaced", "pid 4711")
    tab.until("document.getElementById('events-table').textContent.includes('pid 4711')")
    assert table(tab, "events")[0][1:] == ["forwarder replaced", "pid 4711"]


def test_server_that_is_away_is_asked_ever_more_slowly_and_found_again(
    browser: Browser, shown: Site
) -> None:
    tab = browser.tab()
    with site(shown.door) as first:
        tab.open(first.url)
        tab.until(LIVE)
    tab.until("document.getElementById('live').textContent.includes('every 4 s')")
    assert table(tab, "endpoints")[0][0] == "web"
    with site(shown.door, port=first.port):
        tab.until(LIVE)


def active(tab: Tab) -> str:
    """What has the focus: its id, its link, or its element."""
    found: str = tab.evaluate(
        "(e => e.id || e.getAttribute('href') || e.getAttribute('aria-labelledby') || e.tagName)"
        "(document.activeElement)"
    )
    return found


def test_everything_is_reached_by_keyboard_in_the_order_of_the_page(tab: Tab) -> None:
    order = []
    for _ in range(40):
        tab.press("Tab")
        if (reached := active(tab)) in order or reached == "BODY":
            break
        order.append(reached)
    sections = ["picture", "tunnels", "networks", "endpoints", "drops", "store", "events"]
    assert order == [
        *("#main", "pause", *(f"#{name}" for name in sections)),
        *("tunnels-heading", "find", "networks-heading", "endpoints-heading"),
        *("drops-heading", "events-heading", "api/v1/all"),
    ]


def test_controls_work_by_keyboard(tab: Tab) -> None:
    tab.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter")
    tab.until("document.activeElement.id === 'main'")
    tab.evaluate("document.getElementById('pause').focus()")
    tab.press(" ")
    assert tab.evaluate("document.getElementById('live').textContent") == "paused"
    assert tab.evaluate("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
    tab.press(" ")
    tab.until(LIVE)
    tab.evaluate("document.getElementById('find').focus()")
    for key in "base":
        tab.press(key)
    tab.until("document.getElementById('endpoints-table').tBodies[0].rows.length === 1")
    assert table(tab, "endpoints")[0][0] == "base"


def test_page_has_landmarks_names_and_a_table_for_the_picture(tab: Tab) -> None:
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in tree:
        role = node.get("role", {}).get("value", "")
        roles.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    for role in ("banner", "navigation", "main", "search", "contentinfo"):
        assert len(roles[role]) == 1, role
    assert "Hosts, their endpoints, and the tunnels of this host" in [
        name for role in ("image", "img", "SvgRoot") for name in roles.get(role, ())
    ]
    for role in ("button", "searchbox", "link", "region"):
        assert all(roles[role]), (role, roles[role])
    assert len(roles["table"]) == 5
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
    assert levels == ["H1"] + ["H2"] * 7


CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => {
      const share = c / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.documentElement);
  const value = (name) => light(style.getPropertyValue(`--${name}`));
  const ratio = (one, two) => (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
  const found = {};
  for (const ground of ["ground", "raised"]) {
    for (const name of ["text", "soft", "link", "good", "bad", "warn"]) {
      found[`${name} on ${ground}`] = ratio(value(name), value(ground));
    }
  }
  for (let n = 0; n < 8; n++) found[`n${n} on ground`] = ratio(value(`n${n}`), value("ground"));
  found.dark = value("ground") < 0.1;
  return found;
})()"""


def test_both_palettes_can_be_read(tab: Tab) -> None:
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for what is drawn (1.4.11)."""
    for scheme, dark in (("light", False), ("dark", True)):
        tab.prefer(scheme)
        found: dict[str, Any] = tab.evaluate(CONTRASTS)
        assert found.pop("dark") is dark
        assert len(found) == 20
        weak = {
            name: ratio for name, ratio in found.items() if ratio < (3 if name[0] == "n" else 4.5)
        }
        assert weak == {}, scheme


class HostileViews(Views):
    """Every text that the store may hold is markup."""

    async def everything(self, *, find: str, after: int) -> dict[str, Any]:
        found = await super().everything(find=find, after=after)

        def spoilt(value: Any, key: str = "") -> Any:
            if isinstance(value, dict):
                return {name: spoilt(one, name) for name, one in value.items()}
            if isinstance(value, list):
                return [spoilt(one, key) for one in value]
            return value + HOSTILE if isinstance(value, str) else value

        spoiled: dict[str, Any] = spoilt(found)
        return spoiled


def test_hostile_names_are_text_and_nothing_else(browser: Browser, shown: Site) -> None:
    door = shown.door
    readings = Readings(lambda: door.status.document_with_tunnels("9.9.9"))
    with site(door, HostileViews(readings, door.node.state, door.status.events)) as spoilt:
        tab = browser.tab()
        tab.open(spoilt.url)
        tab.until(LIVE)
        assert table(tab, "endpoints")[0][:3] == [
            f"web{HOSTILE}", f"blue{HOSTILE}", f"host1{HOSTILE}",
        ]  # fmt: skip
        assert HOSTILE in tab.evaluate("document.title")
        assert tab.evaluate("document.querySelectorAll('img, body script').length") == 0
        assert tab.evaluate("'hit' in window") is False
        assert tab.complaints() == []


def test_policy_stops_what_would_get_in(tab: Tab) -> None:
    """The guard behind the guard: even a page that made markup of a name would run nothing."""
    assert "TrustedHTML" in tab.evaluate(
        "(() => { try { document.body.innerHTML = '<p>'; return ''; }"
        " catch (e) { return String(e); } })()"
    )
    tab.evaluate(
        "(() => { const s = document.createElement('style'); s.textContent = '*{}';"
        " document.head.append(s); })()"
    )
    assert any("Content Security Policy" in text for text in tab.complaints())
    assert (
        tab.evaluate("fetch('http://192.0.2.1/').then(() => 'sent', () => 'stopped')") == "stopped"
    )


def test_name_that_was_rebound_to_this_machine_is_refused(browser: Browser, shown: Site) -> None:
    tab = browser.tab()
    assert tab.open(f"http://{ATTACKER}:{shown.port}/") == ""
    refused = "document.body && document.body.textContent"
    text = tab.until(refused)
    assert ATTACKER in text
    assert "web_names" in text
    answer = tab.evaluate("fetch('/api/v1/all').then(a => a.status)")
    assert answer == 403


def test_page_of_another_site_reads_nothing(browser: Browser, shown: Site) -> None:
    tab = browser.tab()
    tab.open(f"http://{ATTACKER}:{shown.port}/")
    tab.until("document.readyState === 'complete' && location.host !== ''")
    # This page's own policy would stop it; a real attacker's page has none.
    tab.call("Page.setBypassCSP", enabled=True)
    tab.call("Page.reload")
    tab.until("document.readyState === 'complete'")
    read = f"fetch('{shown.url}api/v1/all', {{mode: 'MODE'}}).then(a => a.type, () => 'refused')"
    assert tab.evaluate(read.replace("MODE", "cors")) == "refused"
    assert tab.evaluate(read.replace("MODE", "no-cors")) in {"opaque", "refused"}
