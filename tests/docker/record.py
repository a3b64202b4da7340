"""Records what a real dockerd asks of the plug-in, as data for `tests/unit/test_plugin_codec.py`.

    TEST_ENGINE=$(tests/servers/dockerd/build) \\
        python -m tests.docker.record tests/data/docker-28.5-requests.jsonl

One line a request: the command that made Docker send it, the method, the body as it came, without
this machine's own name servers. Ids differ from one recording to the next.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docker.hosts import DockerHost, create, docker_world, gone, run, shown

CALL = re.compile(r"plug-in call method=(\S+) body=(.*)")
OWN_SERVERS = re.compile(r'(?<="169\.254\.53\.53")(,"[^"]*")+')
"""What stands behind our name server in Docker's `dns`."""
QUIET_S = 1.0
"""Docker asks for the last time some moments after its command line has ended."""


class Recorder:
    """The requests that come to one host's daemon."""

    def __init__(self, host: DockerHost) -> None:
        self.lines: list[str] = []
        self._host = host
        self._read = 0

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Notes all requests that come within."""
        self._calls()
        yield
        time.sleep(QUIET_S)
        for method, body in self._calls():
            told = json.loads(OWN_SERVERS.sub("", body))
            entry = {"when": what, "method": method, "body": told}
            self.lines.append(json.dumps(entry, separators=(",", ":")))

    def _calls(self) -> list[tuple[str, str]]:
        text = self._host.log.read_text()
        found, self._read = CALL.findall(text[self._read :]), len(text)
        return found


def record(host: DockerHost, other: DockerHost) -> list[str]:
    """Does everything once; gives the lines."""
    recorder = Recorder(host)
    with recorder.during("network create"):
        create(host, "plain")
    with recorder.during("network create, every option"):
        create(
            host,
            "full",
            *("--subnet", "10.88.0.0/16", "--gateway", "10.88.0.254", "--ip-range", "10.88.5.0/24"),
            *("--aux-address", "r=10.88.5.9", "--ipv6", "--subnet", "fd88::/64", "--internal"),
            *("--opt", "com.docker.network.driver.mtu=1400", "--opt", "vni=4711"),
            *("--label", "l=m", "--attachable"),
        )
    create(host, "ov", "--subnet", "10.0.9.0/24")
    with recorder.during("run"):
        run(host, "c1", "--network", "ov")
    with recorder.during("run, every option"):
        run(
            host,
            "c2",
            *("--network", "ov", "--ip", "10.0.9.99", "--mac-address", "02:aa:bb:cc:dd:ee"),
            *("--network-alias", "web", "--hostname", "hosty", "-p", "8080:80", "--expose", "99"),
        )
    with recorder.during("run on a dual-stack internal network"):
        run(host, "c3", "--network", "full", "--ip6", "fd88::77")
    with recorder.during("network connect"):
        host.docker("network", "connect", "ov", "c3")
    with recorder.during("network disconnect"):
        host.docker("network", "disconnect", "ov", "c3")
    host.docker("rm", "-f", "c2", "c3")
    with recorder.during("rm -f"):
        host.docker("rm", "-f", "c1")
    with recorder.during("network rm"):
        host.docker("network", "rm", "ov")
    with recorder.during("network rm, dual-stack"):
        host.docker("network", "rm", "full")
    with recorder.during("copy by the daemon"):
        create(other, "far", "--subnet", "10.77.0.0/24")
        shown(host, "far")
    with recorder.during("network create without --ipam-driver"):
        host.docker_refused("network", "create", "-d", "pyvxlan", "foreign")
    for name in ("plain", "far"):
        other.docker("network", "rm", name)
        gone(host, name)
    return recorder.lines


def main() -> None:
    """Writes the file."""
    with docker_world("dr", 2, "--log-level", "debug") as world:
        lines = record(*world.hosts)
    Path(sys.argv[1]).write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
