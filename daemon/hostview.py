"""A host as the checks of `pyvxlan doctor` look at it: read when first asked for, changed never."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from pyvxlan.daemon import dockerconfig
from pyvxlan.daemon.apiclient import ApiClient, ClientError
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.findings import Finding

CALL_S = 3.0
PROC = Path("/proc")


def run(*words: str) -> str | None:
    """Gives what a command prints; None if it is not here or fails."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CALL_S,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@dataclass(frozen=True, slots=True)
class Dockerd:
    """The Docker Engine of this host that runs."""

    pid: int
    words: tuple[str, ...]
    """Its command line."""
    started_s: float
    """When, in seconds since the epoch."""

    def options(self, name: str) -> list[str]:
        """The values of an option that it was started with."""
        found = []
        for word, following in zip(self.words[1:], (*self.words[2:], ""), strict=True):
            head, equals, value = word.lstrip("-").partition("=")
            if word.startswith("-") and head == name:
                found.append(value if equals else following)
        return found


class Host:
    """What the checks look at, read when first asked for.

    Args:
        settings: Those of this host's daemon.
        daemon_json: Docker's configuration file; None for the one that the Engine was started
            with, or the usual one.
    """

    def __init__(self, settings: Settings, daemon_json: Path | None = None) -> None:
        self.settings = settings
        self._daemon_json = daemon_json

    @cached_property
    def status(self) -> Mapping[str, Any] | ClientError:
        """What the daemon says of itself, or why it does not."""
        try:
            status: Mapping[str, Any] = ApiClient(self.settings.run_dir).get("status")
        except ClientError as error:
            return error
        return status

    def listed(self, what: str) -> list[Mapping[str, Any]]:
        """A list of the daemon's API; empty if it does not answer."""
        if isinstance(self.status, ClientError):
            return []
        try:
            found: list[Mapping[str, Any]] = ApiClient(self.settings.run_dir).get(what)
        except ClientError:
            return []
        return found

    @cached_property
    def links(self) -> Sequence[Mapping[str, Any]]:
        """Links of this namespace with their addresses, as `ip -json` gives them."""
        try:
            found: list[Mapping[str, Any]] = json.loads(
                run("ip", "-json", "-details", "address") or "[]"
            )
        except ValueError:
            return []
        return found

    @property
    def vtep(self) -> str:
        """The underlay address of this host, as the daemon says; empty if it does not."""
        return "" if isinstance(self.status, ClientError) else str(self.status["host"]["vtep"])

    @property
    def underlay(self) -> Mapping[str, Any] | None:
        """The link that has that address."""
        for link in self.links:
            if self.vtep and self.vtep in {info.get("local") for info in link["addr_info"]}:
                return link
        return None

    @cached_property
    def dockerd(self) -> Dockerd | None:
        """The Engine that wrote the process id beside its socket."""
        try:
            pid = int((self.settings.docker_socket.parent / "docker.pid").read_text().strip())
            words = (PROC / str(pid) / "cmdline").read_bytes().decode().split("\0")[:-1]
            stat = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            up_s = float((PROC / "uptime").read_text().split()[0])
        except (OSError, ValueError):
            return None
        if not words or Path(words[0]).name != "dockerd":
            return None
        ticks = int(stat[19])  # starttime, the 22nd field (proc(5)); counted behind the name
        started_s = time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")
        return Dockerd(pid, tuple(words), started_s)

    @property
    def daemon_json(self) -> Path:
        """Docker's configuration file."""
        named = self.dockerd.options("config-file") if self.dockerd else []
        return self._daemon_json or Path(named[-1] if named else dockerconfig.DAEMON_JSON)

    @cached_property
    def docker_there(self) -> bool:
        """Whether this host has Docker, as far as the daemon is concerned."""
        return bool(self.settings.plugin_path) and (
            self.settings.docker_socket.exists() or self.daemon_json.exists()
        )


Check: TypeAlias = Callable[[Host], Finding | None]
