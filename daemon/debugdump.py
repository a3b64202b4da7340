"""`pyvxlan debug dump`: all that helps to see what is wrong on this host, in one archive.

A part that can't be had becomes a line of `failures.txt`, and the rest goes on: a dump is made when
something is broken. No secret is read; what looks like one in a text is taken out all the same.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from pyvxlan.daemon.apiclient import ApiClient, ClientError
from pyvxlan.daemon.config import Settings, describe
from pyvxlan.daemon.errors import DaemonError

CALL_S = 10.0
LOG_BYTES = 1 << 20
"""Of a log, the end."""
FAILURES = (
    ClientError, DaemonError, HTTPException, OSError, ValueError, subprocess.SubprocessError
)  # fmt: skip
UNIT = "pyvxlan-daemon.service"
SECRETS = (
    (re.compile(r"(://[^\s/:@]*):[^\s/@]+@"), r"\1:(removed)@"),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S),
        "(private key removed)",
    ),
    (re.compile(r"(?i)\b(authorization\"?\s*[:=]\s*\"?)[^\n\"]+"), r"\1(removed)"),
    (
        re.compile(r"(?i)\b((?:password|passwd|secret|token)\"?\s*[:=]\s*\"?)[^\s,;\"'&]+"),
        r"\1(removed)",
    ),
)
HOST_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "links": ("ip", "-details", "-statistics", "link"),
    "addresses": ("ip", "address"),
    "routes": ("ip", "route", "show", "table", "all"),
    "rules": ("nft", "list", "ruleset"),
    "sockets": ("ss", "-lunpm"),
}
OVERLAY_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "links": HOST_COMMANDS["links"],
    "addresses": HOST_COMMANDS["addresses"],
    "fdb": ("bridge", "fdb"),
    "neighbours": ("ip", "neighbour"),
}


def scrubbed(text: str) -> str:
    """Takes out what looks like a secret."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class Dump:
    """Gathers files, each from one source.

    Args:
        settings: Those of the command line: where the daemon is.
        origins: Where each of them came from.
        client: Asks the daemon.
    """

    def __init__(self, settings: Settings, origins: Mapping[str, str], client: ApiClient) -> None:
        self.files: dict[str, str] = {}
        self.failures: list[str] = []
        self._settings = settings
        self._origins = origins
        self._client = client
        self._status: Mapping[str, Any] = {}

    def gather(self) -> None:
        """Takes everything; never raises for what is missing."""
        self._add("about.json", self._about)
        self._add("settings.toml", describe, self._settings, self._origins)
        self._add("status.json", self._take_status)
        for what in ("hosts", "networks", "endpoints", "drops"):
            self._add(f"{what}.json", self._list, what)
        self._add("metrics.txt", self._metrics)
        self._add("doctor.json", self._doctor)
        self._add("forwarder.log", _tail, self._settings.run_dir / "forwarder.log")
        self._add("daemon.log", _run, "journalctl", "-u", UNIT, "-n", "5000", "--no-pager")
        for name, words in HOST_COMMANDS.items():
            self._add(f"host/{name}.txt", _run, *words)
        for path in ("/proc/meminfo", "/proc/loadavg", "/proc/net/softnet_stat", "/proc/net/snmp"):
            self._add(f"host/{path[1:].replace('/', '-')}.txt", _tail, Path(path))
        self._processes()
        self._overlays()
        if self.failures:
            self.files["failures.txt"] = scrubbed("\n".join(self.failures) + "\n")

    def archive(self) -> bytes:
        """Gives what was gathered as a gzipped tar, in one directory."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, text in self.files.items():
                content = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"pyvxlan-{platform.node()}-{stamp}/{name}")
                entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
                tar.addfile(entry, io.BytesIO(content))
        return packed.getvalue()

    def _add(self, name: str, source: Callable[..., str], *arguments: Any) -> None:
        try:
            self.files[name] = scrubbed(source(*arguments))
        except FAILURES as error:
            self.failures.append(f"{name}: {error!r}")

    def _list(self, what: str) -> str:
        return _json(self._client.get(what))

    def _about(self) -> str:
        from importlib.metadata import version  # noqa: PLC0415

        return _json(
            {
                "pyvxlan": version("pyvxlan"),
                "python": sys.version,
                "kernel": platform.uname()._asdict(),
                "processors": os.cpu_count(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
        )

    def _take_status(self) -> str:
        self._status = self._client.get("status")
        return _json(self._status)

    def _metrics(self) -> str:
        """Reads the daemon's metrics, unless that needs a certificate."""
        url = self._status.get("metrics_url") or "off"
        address = re.fullmatch(r"http://\[?([0-9a-fA-F.:]+?)\]?:(\d+)/metrics", url)
        if not address:
            raise OSError(f"metrics are not read by http here ({url})")
        connection = HTTPConnection(address[1], int(address[2]), timeout=CALL_S)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def _doctor(self) -> str:
        from pyvxlan.daemon.doctor import CHECKS, examine  # noqa: PLC0415
        from pyvxlan.daemon.hostview import Host  # noqa: PLC0415

        found = examine(Host(self._settings, None), CHECKS)
        return _json([{"what": one.what, "level": one.level, "text": one.text} for one in found])

    def _processes(self) -> None:
        """What the kernel tells of daemon and forwarder."""
        pids = {"daemon": self._status.get("pid")}
        pids["forwarder"] = self._status.get("forwarder", {}).get("pid")
        for name, pid in pids.items():
            if pid:
                for what in ("status", "limits", "stat"):
                    path = Path(f"/proc/{pid}/{what}")
                    self._add(f"{name}/{what}.txt", _tail, path)

    def _overlays(self) -> None:
        """What the kernel has in the namespace of each network."""
        pid = self._status.get("pid")
        for network in self._status.get("networks", ()):
            # The daemon has mounted them in a mount namespace of its own.
            enter = f"--net=/proc/{pid}/root{network['netns']}"
            for name, words in OVERLAY_COMMANDS.items():
                self._add(
                    f"networks/{network['vni']}/{name}.txt",
                    _run,
                    "nsenter",
                    enter,
                    "--",
                    *words,
                )


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _run(*words: str) -> str:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, timeout=CALL_S, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise OSError(f"{' '.join(words)} ended with {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def _tail(path: Path) -> str:
    content = path.read_bytes()
    return content[-LOG_BYTES:].decode(errors="replace")
