"""Where one peer is measured: two hosts with a cable between them, and a container on each."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping

from tests.netns.world import Host, World, command

PICTURES: Mapping[str, str] = {
    "veth": "offloads on, as between virtual machines: super-packets cross uncut",
    "nic": "offloads off, as on a card without tunnel offloads: at most 1500 bytes a frame",
    "nic-gro": "the same, but the receiver joins frames (GRO), as it does for real cards",
}
UNDERLAY_MTU_BYTES = 1500
OFFLOADS = (
    *("tso", "gso", "tx", "tx-udp-segmentation"),
    *("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"),
)


class Site(World):
    """Two hosts, their `under0` the two ends of one cable (veth)."""

    def __init__(self, name: str) -> None:
        super().__init__(
            name, 2, "--metrics-address", "", "--web-address", "", mtu_bytes=UNDERLAY_MTU_BYTES
        )

    def _plug(self, host: Host, mtu_bytes: int) -> None:
        # The first host brings the cable, whose other end waits for the second one.
        if host.number == 1:
            command(
                *("ip", "-n", host.netns, "link", "add", "under0", "mtu", mtu_bytes),
                *("type", "veth", "peer", "name", "under0", "mtu", mtu_bytes),
                *("netns", self.switch),
            )
        else:
            command("ip", "-n", self.switch, "link", "set", "under0", "netns", host.netns)

    def show(self, picture: str) -> None:
        """Makes the underlay's cable that of `picture`."""
        state = "on" if picture == "veth" else "off"
        receive = "off" if picture == "nic" else "on"
        for host in self.hosts:
            words = [word for offload in OFFLOADS for word in (offload, state)]
            # A kernel or driver that lacks one of them says so, and does the others.
            host.run("ethtool", "-K", "under0", *words, "gro", receive, check=False)
        for host in self.hosts:
            printed = host.run("ethtool", "-k", "under0").stdout
            states = dict(
                line.strip().split(": ", 1) for line in printed.splitlines() if ": " in line
            )
            for name, wanted in (
                ("tcp-segmentation-offload", state),
                ("generic-segmentation-offload", state),
                ("generic-receive-offload", receive),
            ):
                if not states[name].startswith(wanted):
                    raise AssertionError(f"{host.netns}: {name} is {states[name]}, not {wanted}")

    def watch_large_frames(self) -> LargeFrames:
        """Begins to look for frames that no card with this MTU would send."""
        return LargeFrames(self)


class LargeFrames:
    """Looks for frames above 1514 bytes on the cable, as the first host sends them.

    Where they are received it would be too late: there the kernel joins them ahead of a capture.
    """

    def __init__(self, site: Site) -> None:
        self._process = subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{site.hosts[0].netns}", "tcpdump", "-n"),
                *("-i", "under0", "-Q", "out", "-c", "1", "-w", "/dev/null", "--immediate-mode"),
                *("greater", str(UNDERLAY_MTU_BYTES + 15)),
            ],
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert b"listening" in line or b"tcpdump" in line, line
        time.sleep(0.1)

    def seen(self) -> bool:
        """Ends the search; whether there was one."""
        time.sleep(0.1)
        found = self._process.poll() is not None
        self._process.terminate()
        self._process.communicate(timeout=10)
        return found


SETTINGS = (
    # Thousands of connections a second: a client's ports must come free again.
    "ip_local_port_range=1024 65535",
    "tcp_tw_reuse=1",
)


def prepare_end(netns: str) -> None:
    """Gives a namespace that load runs in what the load needs."""
    for setting in SETTINGS:
        command(
            *("nsenter", f"--net=/run/netns/{netns}", "sysctl", "-q", "-w", f"net.ipv4.{setting}")
        )
