"""The API as a client of its socket sees it."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from pyvxlan.daemon import api
from pyvxlan.daemon.documents import parse_attach_request, parse_network_request
from pyvxlan.daemon.errors import ConfigError, InvalidError, NetError
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from tests.unit.doorway import Doorway, doorway


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    with doorway() as made:
        yield made


def call(
    door: Doorway, method: str, path: str, body: object = None, *, raw: bytes | None = None
) -> tuple[int, Any]:
    """One request; returns status and document."""
    content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost:\r\nConnection: close\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(door.run_dir / "api.sock"))
        sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    headers, _, document = answer.partition(b"\r\n\r\n")
    assert b"application/json" in headers
    return int(headers.split()[1]), json.loads(document)


@pytest.fixture
def blue(door: Doorway) -> Iterator[Any]:
    status, document = call(
        door,
        "POST",
        "/v1/networks",
        {"name": "blue", "subnets": ["10.7.0.0/24"], "labels": {"a": "b"}},
    )
    assert status == 201
    yield document
    for endpoint in call(door, "GET", "/v1/endpoints?network=blue")[1]:
        call(door, "DELETE", f"/v1/endpoints/{endpoint['id']}")
    assert call(door, "DELETE", "/v1/networks/blue")[0] == 200


def test_all_hosts_are_asked_for_their_tunnels(door: Doorway) -> None:
    status, (own, other) = call(door, "GET", "/v1/peers?host=all")
    assert status == 200
    assert (own["host"], own["error"]) == (door.node.host.name, "")
    assert own["tunnels"] == call(door, "GET", "/v1/peers")[1]
    assert other["host"] == door.other.host.name
    assert "can't be asked" in other["error"]
    status, refusal = call(door, "GET", "/v1/peers?host=h9")
    assert status == 400
    assert "host 'h9': leave it out" in refusal["error"]


def test_socket_is_for_its_owner_alone(door: Doorway) -> None:
    assert stat.S_IMODE((door.run_dir / "api.sock").stat().st_mode) == 0o600


def test_network_is_created_shown_and_listed(door: Doorway, blue: Any) -> None:
    expected = {
        "name": "blue",
        "driver": "pyvxlan",
        "scope": "global",
        "subnets": [
            {"cidr": "10.7.0.0/24", "gateway": "10.7.0.1", "ip_range": None, "aux_addresses": {}}
        ],
        "mtu_bytes": 1450,
        "internal": False,
        "attachable": False,
        "multicast": True,
        "labels": {"a": "b"},
        "state": "up",
    }
    assert expected.items() <= blue.items()
    status, shown = call(door, "GET", "/v1/networks/blue")
    assert status == 200
    assert shown == blue | {"endpoints": []}
    assert call(door, "GET", f"/v1/networks/{blue['id'][:6]}")[1]["id"] == blue["id"]
    assert blue in call(door, "GET", "/v1/networks")[1]


@pytest.mark.parametrize("name", ["..", "{x}", 'a "b"\\', "%2F", "?x#y", "ü"])
def test_network_of_any_name_is_found_by_it(door: Doorway, name: str) -> None:
    made = call(door, "POST", "/v1/networks", {"name": name})[1]
    path = f"/v1/networks/{quote(name, safe='')}"
    assert call(door, "GET", path)[1]["id"] == made["id"]
    assert call(door, "DELETE", path)[0] == 200


def test_attachment_is_shown_by_name_and_by_network(door: Doorway, blue: Any) -> None:
    door.node.net.add("box")
    wish = {
        "network": "blue",
        "sandbox": "box",
        "name": "bbox1",
        "aliases": ["web"],
        "hostname": "h",
    }
    status, made = call(door, "POST", "/v1/endpoints", wish)
    assert status == 201
    expected = {
        "name": "bbox1",
        "network": "blue",
        "host": "host1",
        "addresses": ["10.7.0.2/24"],
        "mac": "02:42:0a:07:00:02",
        "aliases": ["web"],
        "hostname": "h",
        "local": True,
        "ifname": "eth0",
        "gateway_ifname": "eth1",
    }
    assert expected.items() <= made.items()
    assert made["sandbox"] == {
        "path": "/run/netns/box",
        "inode": 100,
        "pid": None,
        "start_ticks": None,
    }
    for ref in ("bbox1", "bbox1.blue", made["id"], made["id"][:8]):
        assert call(door, "GET", f"/v1/endpoints/{ref}") == (200, made)
    assert call(door, "GET", "/v1/endpoints/bbox1?local=true") == (200, made)
    assert call(door, "GET", "/v1/networks/blue")[1]["endpoints"] == [made]
    assert call(door, "GET", "/v1/endpoints?network=blue&local=true") == (200, [made])
    status, refusal = call(door, "DELETE", "/v1/networks/blue")
    assert status == 409
    assert "bbox1 on host1" in refusal["error"]
    assert call(door, "DELETE", "/v1/endpoints/bbox1") == (200, [made])
    assert call(door, "GET", "/v1/endpoints/bbox1")[0] == 404


def test_namespace_is_detached_from_all_its_networks_or_one(door: Doorway, blue: Any) -> None:
    assert call(door, "POST", "/v1/networks", {"name": "red"})[0] == 201
    door.node.net.add("many")
    for network in ("blue", "red"):
        call(door, "POST", "/v1/endpoints", {"network": network, "sandbox": "many", "name": "m"})
    assert call(door, "GET", "/v1/endpoints/m")[0] == 409
    assert call(door, "GET", "/v1/endpoints/m?local=true")[1]["name"] == "m"
    status, removed = call(door, "DELETE", "/v1/endpoints/many?network=red")
    assert (status, [gone["network"] for gone in removed]) == (200, ["red"])
    call(door, "POST", "/v1/endpoints", {"network": "red", "sandbox": "many", "name": "m"})
    status, removed = call(door, "DELETE", "/v1/endpoints/m?network=blue")
    assert (status, [gone["network"] for gone in removed]) == (200, ["blue"])
    call(door, "POST", "/v1/endpoints", {"network": "blue", "sandbox": "many", "name": "m"})
    status, removed = call(door, "DELETE", "/v1/endpoints/many")
    assert sorted(gone["network"] for gone in removed) == ["blue", "red"]
    status, refusal = call(door, "DELETE", "/v1/endpoints/many")
    assert (status, "many" in refusal["error"]) == (404, True)
    assert call(door, "DELETE", "/v1/networks/red")[0] == 200


def test_unused_networks_are_pruned(door: Doorway) -> None:
    call(door, "POST", "/v1/networks", {"name": "unused"})
    status, removed = call(door, "POST", "/v1/networks/prune", {})
    assert (status, [network["name"] for network in removed]) == (200, ["unused"])


def test_hosts_tell_who_is_alive_and_who_is_asked(door: Doorway) -> None:
    status, hosts = call(door, "GET", "/v1/hosts")
    assert status == 200
    told = [(host["name"], host["vtep"], host["alive"], host["self"]) for host in hosts]
    assert told == [("host1", "198.18.0.1", True, True), ("host2", "198.18.0.2", True, False)]


def test_status_names_the_parts(door: Doorway) -> None:
    status, document = call(door, "GET", "/v1/status")
    assert status == 200
    assert document["version"] == "9.9.9"
    assert document["host"]["name"] == "host1"
    assert document["store"]["synced"] is True
    assert document["forwarder"] == {"up": False, "pid": None, "workers": 0, "restarts": 0}
    assert document["networks"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "named"),
    [
        ("POST", "/v1/networks", {"nmae": "x"}, 400, "did you mean name?"),
        ("POST", "/v1/networks", {}, 400, "name"),
        ("POST", "/v1/networks", {"name": 5}, 400, "text"),
        ("POST", "/v1/networks", {"name": "x", "vni": "5"}, 400, "an integer"),
        ("POST", "/v1/networks", {"name": "x", "vni": True}, 400, "an integer"),
        ("POST", "/v1/networks", {"name": "x", "subnets": "10.0.0.0/8"}, 400, "a list of texts"),
        ("POST", "/v1/networks", {"name": "x", "labels": {"a": 1}}, 400, "an object of texts"),
        ("POST", "/v1/networks", {"name": "x", "ipv6": 1}, 400, "true or false"),
        ("POST", "/v1/networks", {"name": "odd/name"}, 400, "odd/name"),
        ("POST", "/v1/networks", [], 400, "JSON object"),
        ("POST", "/v1/endpoints", {"network": "none", "sandbox": "s"}, 404, "s"),
        ("POST", "/v1/endpoints", {"network": "none"}, 400, "sandbox"),
        ("GET", "/v1/networks/none", None, 404, "none"),
        ("GET", "/v1/networks/b%C3%BCro%2F", None, 404, "büro/"),
        ("DELETE", "/v1/networks/none", None, 404, "none"),
        ("DELETE", "/v1/endpoints/none", None, 404, "none"),
        ("GET", "/v1/endpoints?nework=x", None, 400, "nework"),
        ("GET", "/v1/endpoints?local=1", None, 400, "local=1"),
        ("GET", "/v1/endpoints?netwrok=x", None, 400, "did you mean network?"),
        ("GET", "/v1/networks?x=1", None, 400, "'x'"),
        ("GET", "/v1/hosts?x=1", None, 400, "'x'"),
        ("GET", "/v1/status?x=1", None, 400, "'x'"),
        ("GET", "/v1/networks/none?x=1", None, 400, "'x'"),
        ("DELETE", "/v1/networks/none?force=true", None, 400, "'force'"),
        ("POST", "/v1/networks?name=x", {"name": "x"}, 400, "'name'"),
        ("POST", "/v1/endpoints?x=1", {}, 400, "'x'"),
        ("POST", "/v1/networks/prune", {"force": True}, 400, "'force'"),
        ("POST", "/v1/networks", {"name": ["x" * 90_000]}, 400, "..."),
        ("GET", "/v2/networks", None, 404, "/v1/"),
        ("PUT", "/v1/networks", {}, 405, "GET, HEAD, POST"),
    ],
)
def test_wrong_request_is_refused_with_a_reason(
    door: Doorway, method: str, path: str, body: object, status: int, named: str
) -> None:
    got, document = call(door, method, path, body)
    assert got == status
    assert named in document["error"]
    assert len(document["error"]) < 300
    assert document["retry"] is False


def test_body_that_is_no_json_or_too_long_is_refused(door: Doorway) -> None:
    assert call(door, "POST", "/v1/networks", raw=b"{")[0] == 400
    assert call(door, "POST", "/v1/networks", raw=b"\xff")[0] == 400
    status, document = call(door, "POST", "/v1/networks", raw=b" " * 200_000)
    assert (status, "131072" in document["error"]) == (413, True)
    assert call(door, "POST", "/v1/networks", raw=b"[" * 100_000)[0] == 400


def test_failed_attachment_says_so_and_leaves_nothing(door: Doorway, blue: Any) -> None:
    door.node.net.add("unlucky")
    door.node.reconciler.fail = NetError("the kernel refused it")
    status, document = call(
        door, "POST", "/v1/endpoints", {"network": "blue", "sandbox": "unlucky"}
    )
    assert (status, document) == (500, {"error": "the kernel refused it", "retry": True})
    assert call(door, "GET", "/v1/endpoints")[1] == []


def test_what_nobody_foresaw_is_logged_under_a_number(
    door: Doorway, blue: Any, caplog: pytest.LogCaptureFixture
) -> None:
    door.node.net.add("cursed")
    door.node.reconciler.fail = ZeroDivisionError("secret")
    status, document = call(door, "POST", "/v1/endpoints", {"network": "blue", "sandbox": "cursed"})
    assert status == 500
    assert "secret" not in document["error"]
    number = document["error"].split()[2].rstrip(":")
    assert number in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_bodies_become_specs() -> None:
    body = {"name": "n", "vni": None, "options": {"multicast": "off"}, "subnets": ["a", "b"]}
    assert parse_network_request(body) == NetworkSpec(
        "n", subnets=("a", "b"), options={"multicast": "off"}
    )
    attach = {"network": "n", "sandbox": "s", "ifname": "eth5", "ip": "10.0.0.9"}
    assert parse_attach_request(attach) == AttachSpec("n", "s", EndpointSpec(ip="10.0.0.9"), "eth5")
    with pytest.raises(InvalidError):
        parse_attach_request(None)


async def test_stale_socket_is_replaced_and_its_own_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with api.serving(web.Application(), path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
        assert [entry.name for entry in tmp_path.iterdir()] == ["api.sock"]
    assert list(tmp_path.iterdir()) == []


async def test_socket_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/api\.sock"):
        async with api.serving(web.Application(), tmp_path / "none" / "api.sock"):
            pass


def test_a_question_why_is_passed_on(door: Doorway) -> None:
    status, said = call(door, "POST", "/v1/why", {"a": "web", "b": "10.0.0.3"})
    assert (status, said) == (200, {"asked": ["web", "10.0.0.3", ""]})
    for body in ({"a": "web"}, {"a": "web", "b": 3}, {"a": "web", "b": "db", "via": "n1"}):
        assert call(door, "POST", "/v1/why", body)[0] == 400
