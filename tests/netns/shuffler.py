"""A cable that repeats and reorders frames, as no kernel without netem does."""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import threading
from collections.abc import Iterator

from tests.netns.captures import offloads_off
from tests.netns.world import command, inside

ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING = 0x0003, 263, 23


class Shuffler:
    """Passes frames between two packet sockets until it is told to end.

    Frames that come together, up to `DEPTH`, leave in any order; one in ten leaves twice.
    """

    DEPTH = 6
    LINGER_S = 0.0005
    """How long one waits for others to be mixed with."""

    def __init__(self, ends: tuple[socket.socket, socket.socket]) -> None:
        self.repeated = self.reordered = 0
        self._ends = ends
        self._chance = random.Random(4789)
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._pass, args=pair) for pair in (ends, ends[::-1])
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Ends it; what is on its way is lost."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        held: list[tuple[int, bytes]] = []
        number = 0
        while not self._ending.is_set():
            ready, _, _ = select.select([source], [], [], self.LINGER_S if held else 0.1)
            if ready:
                held.append((number, source.recv(65536)))
                number += 1
            if len(held) == self.DEPTH or (held and not ready):
                held += [frame for frame in held if self._chance.random() < 0.1]
                self._chance.shuffle(held)
                order = [place for place, _ in held]
                self.repeated += len(order) - len(set(order))
                self.reordered += sum(a > b for a, b in itertools.pairwise(order))
                for _, frame in held:
                    with contextlib.suppress(OSError):  # a full queue, as on any cable
                        target.send(frame)
                held.clear()


@contextlib.contextmanager
def shuffling(switch: str, port: str, bridge: str) -> Iterator[Shuffler]:
    """Takes a port off its switch while inside, and puts a shuffler between both.

    Frames that cross it must be whole: the hosts' offloads have to be off.
    """
    ip = ("ip", "-n", switch, "link")
    command(*ip, "add", "mix0", "type", "veth", "peer", "name", "mix1")
    command(*ip, "set", "mix0", "master", bridge, "up")
    command(*ip, "set", "mix1", "up")
    offloads_off(*((switch, name) for name in ("mix0", "mix1", port)))
    command(*ip, "set", port, "nomaster")

    def packet_socket(name: str) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        made.bind((name, ETH_P_ALL))
        return made

    try:
        with (
            inside(switch, lambda: packet_socket("mix1")) as inner,
            inside(switch, lambda: packet_socket(port)) as outer,
        ):
            shuffler = Shuffler((inner, outer))
            try:
                yield shuffler
            finally:
                shuffler.end()
    finally:
        command(*ip, "del", "mix0")
        command(*ip, "set", port, "master", bridge)
