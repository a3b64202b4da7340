"""Every panel of the dashboards, asked of a real Prometheus that reads daemons under traffic."""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import math
import re
import socket
import subprocess
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import pytest

from grafana.build import FOLDER
from tests.chromium import chromium
from tests.netns.world import BIN, Container, Host, World, command, eventually, inside, world

pytestmark = pytest.mark.root

PORT = 9090
CONFIG = """
global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [RULES]
scrape_configs:
  - job_name: pyvxlan
    static_configs:
      - {targets: ["198.18.0.1:9472"], labels: {instance: h1}}
      - {targets: ["198.18.0.2:9472"], labels: {instance: h2}}
"""
VARIABLES = {"$__rate_interval": "30s", "$host": ".+", "$network": ".+", "[1h]": "[30s]"}
"""What Grafana puts in; the hour is a minute's half here, since nothing is older."""


class Prometheus:
    """A Prometheus on the first host."""

    def __init__(self, host: Host) -> None:
        self.netns = host.netns

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """The samples that a query gives now."""

        def get() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
            with contextlib.closing(connection):
                connection.request(
                    "GET", f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
                )
                answer = connection.getresponse()
                if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                    raise ConnectionError("Prometheus starts")
                return json.loads(answer.read())

        answer = inside(self.netns, get)
        assert answer["status"] == "success", f"{expr}: {answer}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def has(self, expr: str) -> bool:
        """Whether a query gives a number; an average of nothing is none."""
        return any(math.isfinite(float(sample["value"][1])) for sample in self.ask(expr))


@contextlib.contextmanager
def prometheus(host: Host, directory: Path) -> Iterator[Prometheus]:
    rules = FOLDER.parent / "prometheus" / "rules.yml"
    config = directory / "prometheus.yml"
    config.write_text(CONFIG.replace("RULES", str(rules)), "utf-8")
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *host.enter(),
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{PORT}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        made = Prometheus(host)

        def answers() -> bool:
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            with contextlib.suppress(OSError):
                return len(made.ask("up == 1")) == 2
            return False

        eventually(answers, within_s=60, what="Prometheus reads both daemons")
        yield made
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Prometheus]]:
    """Two hosts with a network under traffic, and Prometheus on one of them."""
    directory = tmp_path_factory.mktemp("prometheus")
    with world("pm", 2, start=False) as made:
        for host in made.hosts:
            plugin = made.directory / f"host{host.number}" / "plugin.sock"
            address = f"{host.address}:9472"
            host.start("--metrics-address", address, "--plugin-socket", plugin, wait=False)
        for host in made.hosts:
            host.wait()
        with prometheus(made[1], directory) as running, traffic(made):
            yield made, running


@contextlib.contextmanager
def traffic(made: World) -> Iterator[None]:
    """Everything that a panel tells of happens again and again while inside."""
    one, two = made[1], made[2]
    one.cli("network", "create", "blue")
    first, second = one.container(), two.container()
    first.attach("blue", "--name", "first")
    second.attach("blue", "--name", "second")
    address = second.addresses()[0].partition("/")[0]
    over = threading.Event()

    def happen() -> None:
        visitor = one.container("visitor")
        while not over.is_set():
            # What fails is missing in the panels, which is what is tested.
            with contextlib.suppress(AssertionError, OSError):
                first.ping(address, count=2)
                first.run("ping", "-c1", "-W1", "-b", "10.0.0.255", check=False)
                ask_for_name(first, "second")
                visitor.attach("blue")
                visitor.detach()
                for host in made.hosts:
                    ask_plugin(host)

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ask_for_name(container: Container, name: str) -> None:
    """Asks the name server as a container's resolver does."""
    with container.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(dns.message.make_query(name, "A").to_wire(), ("127.0.0.11", 53))
        sock.recv(512)


def ask_plugin(host: Host) -> None:
    """Asks for a pool as Docker does, which is refused, since its space is no space of ours."""
    body = json.dumps({"AddressSpace": "none", "Pool": "", "SubPool": "", "V6": False})
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(host.world.directory / f"host{host.number}" / "plugin.sock"))
        sock.sendall(
            b"POST /IpamDriver.RequestPool HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body.encode())
        )
        while sock.recv(4096):
            pass


def queries() -> Iterator[tuple[str, str]]:
    """All queries of all panels, and of the variables, with what they are of."""
    for path in sorted(FOLDER.glob("*.json")):
        board = json.loads(path.read_text("utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{board['title']}: {panel['title']} {target['refId']}", target["expr"]
        for variable in board["templating"]["list"]:
            if match := re.fullmatch(r"label_values\((.+), \w+\)", str(variable.get("query"))):
                yield f"{board['title']}: variable {variable['name']}", match[1]


def filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def test_every_panel_has_data(cluster: tuple[World, Prometheus]) -> None:
    _, asked = cluster
    waiting = {name: filled(expr) for name, expr in queries()}
    assert len(waiting) > 60
    # A reason of which nothing was dropped is not drawn; another query of that panel always is.
    rare = {name for name, expr in waiting.items() if expr.endswith("> 0")}
    for name in rare:
        asked.ask(waiting.pop(name))

    def all_have_data() -> bool:
        for name, expr in tuple(waiting.items()):
            if asked.has(expr):
                del waiting[name]
        return not waiting

    with contextlib.suppress(AssertionError):
        eventually(all_have_data, within_s=40)
    assert waiting == {}


def test_rules_give_data_and_no_false_alarm(cluster: tuple[World, Prometheus]) -> None:
    _, asked = cluster
    rules = (FOLDER.parent / "prometheus" / "rules.yml").read_text("utf-8")
    for record in re.findall(r"- record: (\S+)", rules):
        eventually(partial(asked.has, record), within_s=30, what=record)
    assert [sample["metric"] for sample in asked.ask('ALERTS{alertstate="firing"}')] == []


def test_top_shows_what_flows(cluster: tuple[World, Prometheus]) -> None:
    made, _ = cluster
    printed = made[1].cli("top", "--interval", "0.5", "--count", "8", "--format", "json")
    pages = [json.loads(line) for line in printed.splitlines()]
    assert max(page["networks"][0]["egress_frames"] for page in pages) > 0
    assert {page["networks"][0]["name"] for page in pages} == {"blue"}
    (peer,) = pages[0]["peers"]
    assert peer["host"] == "h2"
    assert max(page["peers"][0]["sent_bytes"] for page in pages) > 0
    endpoints = [endpoint for page in pages for endpoint in page["endpoints"]]
    assert {endpoint["network"] for endpoint in endpoints} == {"blue"}
    for way in ("sent_bytes", "received_bytes"):
        assert max(endpoint[way] for endpoint in endpoints) > 0


def test_page_shows_what_flows_in_a_browser(
    cluster: tuple[World, Prometheus], tmp_path: Path
) -> None:
    made, _ = cluster
    with chromium(tmp_path, *made[1].enter()) as browser:
        tab = browser.tab()
        assert tab.open("http://127.0.0.1:9474/") == ""
        blue = "document.getElementById('networks-table')?.tBodies[0].rows[0]?.cells[6].textContent"
        tab.until(f"/[1-9].* .*bit/.test({blue})")
        tab.until("/[1-9].*bit.* out/.test(document.getElementById('drawing').textContent)")
        tab.until("/[0-9].*% lost/.test(document.getElementById('drawing').textContent)")
        for name, text in (("endpoints", "second"), ("events", "endpoint added")):
            tab.until(f"document.getElementById('{name}-table').textContent.includes('{text}')")
        assert tab.complaints() == []


def test_dump_holds_what_the_kernel_has(cluster: tuple[World, Prometheus]) -> None:
    made, _ = cluster
    path = made.directory / "dump.tar.gz"
    made[1].run(BIN / "pyvxlan", "--run-dir", made[1].run_dir, "debug", "dump", "-o", path)
    with tarfile.open(path) as tar:
        names = {name.partition("/")[2]: name for name in tar.getnames()}
        vni = json.loads(made[1].cli("network", "inspect", "blue"))[0]["vni"]
        for name, told in (
            ("metrics.txt", "pyvxlan_frames_total"),
            ("forwarder.log", "engine started"),
            ("forwarder/stat.txt", "("),
            ("host/links.txt", "under0"),
            (f"networks/{vni}/links.txt", "vxlan0"),
            (f"networks/{vni}/fdb.txt", "br0"),
        ):
            file = tar.extractfile(names[name])
            assert file is not None
            assert told in file.read().decode()


def test_forwarder_that_is_gone_is_an_alarm(cluster: tuple[World, Prometheus]) -> None:
    made, asked = cluster
    command("kill", "-9", made[2].forwarder_pid())
    alarm = 'ALERTS{alertname="PyvxlanForwarderReplaced",instance="h2",alertstate="firing"}'
    eventually(lambda: asked.ask(alarm), within_s=30, what=alarm)
