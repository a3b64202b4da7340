"""What is wrong on this host, and what to do about it: the checks of `pyvxlan doctor`.

A check is a function that looks at one thing and gives a finding, or None if the thing is not this
host's. It changes nothing, waits a few seconds at most, and never raises for what it finds. Here
are those of daemon, store and Docker; those of the host are in `hostchecks`.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from pyvxlan.daemon import dockerconfig, ipam
from pyvxlan.daemon.apiclient import ApiClient, ClientError
from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.findings import Finding, Level
from pyvxlan.daemon.hostchecks import HOST_CHECKS
from pyvxlan.daemon.hostview import CALL_S, Check, Host, run
from pyvxlan.daemon.model import DOCKER_BRIDGE, Cidr
from pyvxlan.daemon.tunnels import judge

OLDEST_DOCKER = (20, 10)
CLOCK_S = 0.05
"""How far apart the clocks of processes and of files may be."""
UNIT = "pyvxlan-daemon.service"
DOCKER_UNIT = "docker.service"


def examine(host: Host, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """Looks at everything, in order; what is not this host's is left out."""
    for check in CHECKS if checks is None else checks:
        if found := check(host):
            yield found


def check_daemon(host: Host) -> Finding:
    """Whether the daemon answers."""
    status = host.status
    if isinstance(status, ClientError):
        return Finding("error", "daemon", str(status))
    if problems := status["reconcile"]["problems"]:
        return Finding("warning", "daemon", f"answers, but: {problems[0]} (pyvxlan status)")
    return Finding("ok", "daemon", f"answers, pid {status['pid']}")


def check_tunnels(host: Host) -> Finding | None:
    """Whether the other hosts answer through their tunnels, and how long packets get there."""
    try:
        return judge(ApiClient(host.settings.run_dir).get("peers"))
    except ClientError:
        return None  # `check_daemon` tells


def check_store(host: Host) -> Finding | None:
    """Whether the daemon is in step with its store."""
    if isinstance(host.status, ClientError):
        return None
    store = host.status["store"]
    if not store["synced"]:
        text = f"{store['url']} does not answer ({store['cause']}): see pyvxlan store check"
        return Finding("error", "store", text)
    if store["problem"]:
        return Finding("error", "store", f"this host is not registered: {store['problem']}")
    return Finding("ok", "store", f"{store['url']} is in step")


def check_docker(host: Host) -> Finding | None:
    """Whether Docker's API answers, and is not too old."""
    if not host.docker_there:
        return None
    path = host.settings.docker_socket
    try:
        version = str(_call(path, "GET", "/version")["Version"])
    except (OSError, HTTPException, ValueError, LookupError) as error:
        return Finding(
            "error",
            "docker",
            f"no Docker answers on {path} ({_reason(error)}): start it (systemctl start docker), "
            "or name its socket with the setting docker_socket",
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_DOCKER:
        return Finding("error", "docker", f"version {version}: 20.10 or later is needed")
    return Finding("ok", "docker", f"version {version}")


def check_plugin(host: Host) -> Finding | None:
    """Whether the plug-in answers where Docker looks for it."""
    path = host.settings.plugin_path
    if not host.docker_there or path is None:
        return None
    remedy = "restart pyvxlan-daemon, and see its log"
    try:
        implements = _call(path, "POST", "/Plugin.Activate")["Implements"]
    except (OSError, HTTPException, ValueError, LookupError) as error:
        text = f"nobody answers on {path} ({_reason(error)}): {remedy}"
        return Finding("error", "plug-in", text)
    if not {"NetworkDriver", "IpamDriver"} <= set(implements):
        text = f"{path} is served by something else ({', '.join(implements)}): {remedy}"
        return Finding("error", "plug-in", text)
    return Finding("ok", "plug-in", f"answers on {path}, driver {path.stem}")


def check_dns(host: Host) -> Finding | None:
    """Whether Docker asks the daemon for names first."""
    if not host.docker_there:
        return None
    try:
        level, text = _dns(host)
        given = host.dockerd.options("dns-opt") if host.dockerd else []
        where = dockerconfig.ndots(host.daemon_json, given) if level == "ok" else ""
    except ConfigError as error:
        return Finding("error", "dns", str(error))
    if where:
        text = (
            f"{where} sets ndots, so Docker asks nobody for a name without a dot that it does not "
            "know itself: take ndots away, or ask for NAME.NETWORK"
        )
        return Finding("warning", "dns", text)
    return Finding(level, "dns", text)


def _dns(host: Host) -> tuple[Level, str]:
    address, dockerd = host.settings.names_address, host.dockerd
    given = dockerd.options("dns") if dockerd else []
    if given[:1] == [address]:
        return "ok", f"dockerd is started with --dns {address}"
    if given:
        return "error", (
            f"dockerd is started with --dns {given[0]}: put --dns {address} before it, or take it "
            "away and run pyvxlan docker setup"
        )
    path = host.daemon_json
    servers = dockerconfig.servers(path)
    if servers[:1] != (address,):
        return "error", (
            f"{path} does not name {address} first in dns, so containers find no names of other "
            "hosts: run pyvxlan docker setup, and restart Docker"
        )
    if dockerd and path.stat().st_mtime > dockerd.started_s + CLOCK_S:
        return "warning", f"{path} was changed after Docker had started: restart Docker"
    return "ok", f"{path} names {address} first"


def check_ranges(host: Host) -> Finding | None:
    """Whether a network has addresses of the bridge that leads its containers out of the host."""
    held = [
        ip_interface(f"{info['local']}/{info['prefixlen']}").network
        for link in host.links
        if link["ifname"] == DOCKER_BRIDGE
        for info in link["addr_info"]
        if info.get("scope") == "global"
    ]
    return ranges_of(held, host.listed("networks")) if held else None


def ranges_of(held: Sequence[Cidr], networks: Sequence[Mapping[str, Any]]) -> Finding:
    """Judges the ranges of Docker's bridge beside those of the cluster's networks."""
    for network in networks:
        for subnet in network["subnets"]:
            cidr = ip_network(subnet["cidr"])
            if any(ipam.overlap(cidr, other) for other in held):
                text = (
                    f"network {network['name']} has {cidr}, which shares addresses with "
                    f"{DOCKER_BRIDGE} of this host: its containers don't start here. Remove the "
                    f"bridge and run docker network create --subnet RANGE {DOCKER_BRIDGE}, or "
                    "create the network anew with another subnet"
                )
                return Finding("error", "ranges", text)
    return Finding("ok", "ranges", f"no network shares addresses with {DOCKER_BRIDGE}")


def check_order(host: Host) -> Finding | None:
    """Whether systemd starts the daemon before Docker."""
    if not host.docker_there or not Path("/run/systemd/system").is_dir():
        return None
    shown = _systemd(UNIT)
    return None if shown is None else order_of(shown)


def order_of(shown: Mapping[str, str]) -> Finding:
    """Judges what systemd says of the daemon's unit."""
    if shown.get("LoadState") != "loaded":
        text = (
            f"systemd knows no {UNIT}: install it (docs/config.md), or start the daemon before "
            "Docker some other way; a Docker with networks of ours waits for it"
        )
        return Finding("warning", "order", text)
    if DOCKER_UNIT not in shown.get("Before", "").split():
        text = f"{UNIT} has no Before={DOCKER_UNIT}: add it, then systemctl daemon-reload"
        return Finding("error", "order", text)
    if shown.get("UnitFileState") not in {"enabled", "enabled-runtime"}:
        text = f"{UNIT} is not started at boot: systemctl enable pyvxlan-daemon"
        return Finding("warning", "order", text)
    if DOCKER_UNIT not in shown.get("WantedBy", "").split():
        text = (
            f"a Docker that is started by hand does not start {UNIT}, and waits for it: systemctl "
            "reenable pyvxlan-daemon (WantedBy=docker.service)"
        )
        return Finding("warning", "order", text)
    return Finding("ok", "order", f"{UNIT} is started at boot, with Docker and before it")


DOCKER_CHECKS: Sequence[Check] = (
    check_docker, check_plugin, check_dns, check_ranges, check_order,
)  # fmt: skip
CHECKS: Sequence[Check] = (
    check_daemon, check_store, check_tunnels, *HOST_CHECKS, *DOCKER_CHECKS,
)  # fmt: skip


def _systemd(unit: str) -> Mapping[str, str] | None:
    shown = run("systemctl", "show", unit, "--property=LoadState,UnitFileState,Before")
    if shown is None:
        return None
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def _call(path: Path, method: str, target: str) -> dict[str, Any]:
    """One HTTP request on a unix socket; gives the JSON object of its answer."""
    connection = _UnixConnection(path)
    try:
        connection.request(method, target)
        document = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise ValueError(f"{target} answered with {document!r}")
    return document


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CALL_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or repr(error)
