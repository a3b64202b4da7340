"""The doctor: what it finds on a host, and the remedy that it names."""

from __future__ import annotations

import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path

import pytest

from pyvxlan.daemon import dockerconfig, doctor, hostview
from pyvxlan.daemon.cli import run as run_cli
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.findings import Finding
from pyvxlan.daemon.hostview import Check, Host
from pyvxlan.daemon.plugin import server
from tests.unit.doorway import Doorway, doorway

OURS = Settings().names_address
PID = 4242
OF_DAEMON = (doctor.check_daemon, doctor.check_store, *doctor.DOCKER_CHECKS)
"""Without those of the host, which is whatever runs the tests."""


class Answers(socketserver.ThreadingUnixStreamServer):
    """Something that answers HTTP on a unix socket, always the same by path."""

    daemon_threads = True

    def __init__(self, path: Path, answers: dict[str, object]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = json.dumps(answers[self.path]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815 - as the base class calls it

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        super().__init__(str(path), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()


class Place:
    """A host's files and sockets, as the checks look at them."""

    def __init__(self, directory: Path, run_dir: Path) -> None:
        self.directory = directory
        self.daemon_json = directory / "daemon.json"
        self.settings = Settings(
            run_dir=run_dir,
            state_dir=directory / "state",
            docker_socket=directory / "docker.sock",
            plugin_socket=str(directory / "pyvxlan.sock"),
        )
        self.servers: list[Answers] = []
        self.proc = directory / "proc"
        self.proc.mkdir()
        (self.proc / "uptime").write_text("1000.00 1999.00\n")

    @property
    def host(self) -> Host:
        return Host(self.settings)

    def docker(self, version: str = "20.10.24", *options: str, started_s: float = 999) -> None:
        """Starts an Engine, so many seconds after the machine."""
        self.servers.append(
            Answers(self.settings.docker_socket, {"/version": {"Version": version}})
        )
        (self.directory / "docker.pid").write_text(f"{PID}\n")
        process = self.proc / str(PID)
        process.mkdir()
        words = ["/usr/bin/dockerd", f"--config-file={self.daemon_json}", *options]
        (process / "cmdline").write_text("\0".join(words) + "\0")
        ticks = int(started_s * os.sysconf("SC_CLK_TCK"))
        fields = " ".join(["0"] * 18)
        (process / "stat").write_text(f"{PID} (docker) d) S {fields} {ticks} 0")

    def plugin(self, answer: object = server.CONSTANT["Plugin.Activate"]) -> None:
        assert self.settings.plugin_path
        self.servers.append(Answers(self.settings.plugin_path, {"/Plugin.Activate": answer}))

    def dns(self, *servers: str, changed_s: float = 0) -> None:
        """Writes daemon.json, so many seconds after the machine's start."""
        self.config({"dns": servers}, changed_s=changed_s)

    def config(self, document: dict[str, object], *, changed_s: float = 0) -> None:
        """Writes daemon.json with more than `dns`."""
        self.daemon_json.write_text(json.dumps(document))
        at_s = time.time() - 1000 + changed_s
        os.utime(self.daemon_json, (at_s, at_s))

    def finds(self, check: Check) -> Finding:
        found = check(self.host)
        assert found
        return found

    def close(self) -> None:
        for one in self.servers:
            one.shutdown()
            one.server_close()


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    with doorway() as made:
        yield made


@pytest.fixture
def place(tmp_path: Path, door: Doorway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, door.run_dir)
    monkeypatch.setattr(hostview, "PROC", made.proc)
    yield made
    made.close()


def test_host_in_order_has_nothing_to_complain_of(place: Place) -> None:
    place.docker()
    place.plugin()
    place.dns(OURS, "192.0.2.53")
    found = {one.what: one for one in doctor.examine(place.host, OF_DAEMON)}
    order = found.pop("order", None)  # As the machine of the test has it.
    assert set(found) == {"daemon", "store", "docker", "plug-in", "dns"}
    assert {one.level for one in found.values()} == {"ok"}, found
    assert order is None or order.text


def test_host_without_docker_is_not_told_of_it(place: Place) -> None:
    assert [one.what for one in doctor.examine(place.host, OF_DAEMON)] == ["daemon", "store"]


def test_daemon_that_is_not_there_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    host = Host(Settings(run_dir=tmp_path, docker_socket=tmp_path / "none"))
    (found,) = doctor.examine(host, [doctor.check_daemon, doctor.check_store])
    assert found.level == "error"
    assert "systemctl start pyvxlan-daemon" in found.text


def test_docker_that_does_not_answer_is_an_error(place: Place) -> None:
    place.daemon_json.write_text("{}")
    place.settings.docker_socket.touch()
    found = place.finds(doctor.check_docker)
    assert found.level == "error"
    assert "systemctl start docker" in found.text
    assert str(place.settings.docker_socket) in found.text


@pytest.mark.parametrize(
    ("version", "level"),
    [("19.03.15", "error"), ("20.10.24+dfsg1", "ok"), ("29.0.1", "ok"), ("26.1", "ok")],
)
def test_old_docker_is_an_error(place: Place, version: str, level: str) -> None:
    place.docker(version)
    found = place.finds(doctor.check_docker)
    assert (found.level, version in found.text) == (level, True)


@pytest.mark.parametrize("answer", [{"Implements": ["VolumeDriver"]}, ["nonsense"], {}])
def test_plugin_socket_of_somebody_else_is_an_error(place: Place, answer: object) -> None:
    place.docker()
    place.plugin(answer)
    found = place.finds(doctor.check_plugin)
    assert found.level == "error"
    assert "restart pyvxlan-daemon" in found.text


def test_plugin_socket_that_is_not_there_is_an_error(place: Place) -> None:
    place.docker()
    assert "No such file" in place.finds(doctor.check_plugin).text


@pytest.mark.parametrize("servers", [(), ("192.0.2.1",), ("192.0.2.1", OURS)])
def test_missing_dns_is_an_error_that_names_setup(place: Place, servers: tuple[str, ...]) -> None:
    place.docker()
    place.dns(*servers)
    found = place.finds(doctor.check_dns)
    assert found.level == "error"
    assert "pyvxlan docker setup" in found.text


def test_dns_that_docker_has_not_read_yet_is_a_warning(place: Place) -> None:
    place.docker(started_s=500)
    place.dns(OURS, changed_s=600)
    found = place.finds(doctor.check_dns)
    assert (found.level, "restart Docker" in found.text) == ("warning", True)


@pytest.mark.parametrize(
    ("flags", "options", "host", "where"),
    [
        ((), ["ndots:0"], "", "Docker's dns-opts"),
        (("--dns-opt", "ndots:1"), [], "", "Docker's dns-opts"),
        ((), [], "options edns0 ndots:2\n", "resolv.conf"),
        ((), ["timeout:1"], "options ndots:2\n", ""),  # Docker's replace the host's.
        ((), [], "nameserver 192.0.2.1\n", ""),
    ],
)
def test_ndots_keeps_names_from_being_asked_for(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    *,
    flags: tuple[str, ...],
    options: list[str],
    host: str,
    where: str,
) -> None:
    resolv_conf = place.directory / "resolv.conf"
    resolv_conf.write_text(host)
    monkeypatch.setattr(dockerconfig, "RESOLV_CONF", resolv_conf)
    place.docker("20.10.24", *flags)
    place.config({"dns": [OURS], "dns-opts": options})
    found = place.finds(doctor.check_dns)
    assert found.level == ("warning" if where else "ok")
    assert f"{where} sets ndots" in found.text or not where


@pytest.mark.parametrize("form", [("--dns", "{}"), ("--dns={}",), ("-dns={}",)])
def test_dns_of_the_command_line_counts(place: Place, form: tuple[str, ...]) -> None:
    place.docker("20.10.24", *(word.format(OURS) for word in form))
    assert place.finds(doctor.check_dns).level == "ok"


def test_other_dns_of_the_command_line_is_an_error(place: Place) -> None:
    place.docker("20.10.24", "--dns", "192.0.2.1")
    place.dns(OURS)
    assert f"put --dns {OURS} before it" in place.finds(doctor.check_dns).text


def test_broken_daemon_json_is_an_error(place: Place) -> None:
    place.docker()
    place.daemon_json.write_text("{")
    assert "is not JSON" in place.finds(doctor.check_dns).text


@pytest.mark.parametrize(
    ("shown", "level", "said"),
    [
        ({"LoadState": "not-found"}, "warning", "systemd knows no"),
        ({"LoadState": "loaded", "Before": "x.target"}, "error", "Before=docker.service"),
        (
            {"LoadState": "loaded", "Before": "docker.service", "UnitFileState": "disabled"},
            "warning",
            "systemctl enable",
        ),
        (
            {"LoadState": "loaded", "Before": "docker.service", "UnitFileState": "enabled"},
            "warning",
            "systemctl reenable",
        ),
        (
            {
                "LoadState": "loaded",
                "Before": "a docker.service",
                "UnitFileState": "enabled",
                "WantedBy": "multi-user.target docker.service",
            },
            "ok",
            "before it",
        ),
    ],
)
def test_order_of_the_units(shown: dict[str, str], level: str, said: str) -> None:
    found = doctor.order_of(shown)
    assert (found.level, said in found.text) == (level, True)


@pytest.mark.parametrize(
    ("cidrs", "level", "said"),
    [
        (("10.0.0.0/24", "fd00::/64"), "ok", "no network"),
        (("10.0.0.0/24", "172.18.9.0/24"), "error", "network n1 has 172.18.9.0/24"),
        (("172.16.0.0/12",), "error", "docker network create --subnet RANGE docker_gwbridge"),
    ],
)
def test_ranges_of_networks_beside_dockers_own(
    cidrs: tuple[str, ...], level: str, said: str
) -> None:
    networks = [{"name": f"n{n}", "subnets": [{"cidr": cidr}]} for n, cidr in enumerate(cidrs)]
    found = doctor.ranges_of([ip_network("172.18.0.0/16")], networks)
    assert (found.level, said.replace("n1", f"n{len(cidrs) - 1}") in found.text) == (level, True)


# The commands


class Commands:
    """Runs `pyvxlan` for a place; keeps what it printed."""

    def __init__(
        self,
        place: Place,
        monkeypatch: pytest.MonkeyPatch,
        captured: pytest.CaptureFixture[str],
    ) -> None:
        self.place = place
        self.error = ""
        self._captured = captured
        for name in ("state_dir", "docker_socket", "plugin_socket"):
            monkeypatch.setenv(f"PYVXLAN_{name.upper()}", str(getattr(place.settings, name)))
        monkeypatch.setattr(doctor, "CHECKS", OF_DAEMON)
        monkeypatch.setattr(dockerconfig, "RESOLV_CONF", place.directory / "none")
        monkeypatch.setattr(dockerconfig, "RESOLVED", place.directory / "none")

    def __call__(self, *args: str, code: int = 0) -> str:
        exit_code = run_cli(["--run-dir", str(self.place.settings.run_dir), *args])
        printed, self.error = self._captured.readouterr()
        assert exit_code == code, (printed, self.error)
        return printed


@pytest.fixture
def commands(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Commands:
    return Commands(place, monkeypatch, capsys)


def test_setup_check_and_undo_by_the_command_line(place: Place, commands: Commands) -> None:
    file = ("--file", str(place.daemon_json))
    place.daemon_json.write_text('{"debug": true}\n')
    place.docker()
    place.plugin()
    assert "dns" in commands("docker", "check", *file, code=1)
    assert commands("docker", "setup", "--dry-run", *file) == (
        f"--- {place.daemon_json}\n+++ {place.daemon_json}\n@@ -1 +1 @@\n"
        f'-{{"debug": true}}\n+{{"debug": true, "dns": ["{OURS}"]}}\n'
    )
    assert place.daemon_json.read_text() == '{"debug": true}\n'
    commands("docker", "setup", *file)
    assert "restart Docker" in commands.error
    assert commands("docker", "setup", *file) == ""
    assert "as it should be" in commands.error
    printed = commands("docker", "check", "--format", "json", *file)
    assert [one["what"] for one in json.loads(printed)][:3] == ["docker", "plug-in", "dns"]
    commands("docker", "undo", *file)
    assert place.daemon_json.read_text() == '{"debug": true}\n'


def test_setup_is_refused_where_docker_would_not_start_any_more(
    place: Place, commands: Commands
) -> None:
    place.docker("20.10.24", "--dns=192.0.2.1")
    place.daemon_json.write_text("{}")
    commands("docker", "setup", code=1)
    assert "--dns 192.0.2.1" in commands.error
    assert place.daemon_json.read_text() == "{}"


def test_setup_has_nothing_to_do_where_the_command_line_says_it(
    place: Place, commands: Commands
) -> None:
    place.docker("20.10.24", f"--dns={OURS}")
    place.daemon_json.write_text("{}")
    assert commands("docker", "setup") == ""
    assert place.daemon_json.read_text() == "{}"


def test_check_without_docker_says_so(commands: Commands) -> None:
    commands("docker", "check", code=1)
    assert "there is no Docker here" in commands.error


def test_doctor_ends_with_1_if_there_is_an_error(place: Place, commands: Commands) -> None:
    assert "ok" in commands("doctor")
    place.settings.docker_socket.touch()
    assert "no Docker answers" in commands("doctor", code=1)
