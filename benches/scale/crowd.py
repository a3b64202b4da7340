"""Some of the simulated hosts in a process of their own: one process is no match for a thousand.

The process takes words on stdin, a line each, and answers each with a line of JSON (`summary`):
`start` once all hosts have started, `lost` once none hears from the store any more, `back` once all
are in step again, anything else at once. It ends with stdin.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from benches.scale.gauges import cpu_s, rss
from benches.scale.hosts import (
    SimulatedHost,
    Size,
    all_lost,
    in_step,
    nobody,
    share_parsing,
    start_hosts,
)
from pyvxlan.daemon.following import REASONS

REPO = Path(__file__).resolve().parents[2]


class Crowd:
    """The other end: a process with some of the hosts."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(
        cls, url: str, numbers: range, size: Size, *, at_once: int, within_s: float, memory: int
    ) -> Crowd:
        """Starts the process; its hosts start when it is asked to `start`."""
        words = (numbers.start, numbers.stop, *astuple(size), at_once, int(within_s), memory)
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benches.scale.crowd", url, *map(str, words)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=REPO,
            )
        )

    async def ask(self, word: str) -> Mapping[str, float]:
        """Says a word; returns the answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(f"{word}\n".encode())
        answer: Mapping[str, float] = json.loads(await stdout.readline())
        return answer

    async def close(self) -> None:
        """Lets the hosts end, and the process with them."""
        assert self._process.stdin
        self._process.stdin.close()
        assert await self._process.wait() == 0


def summary(hosts: Mapping[int, SimulatedHost]) -> Mapping[str, float]:
    """Sums up this process and its hosts, by name."""
    resyncs = Counter[str]()
    for host in hosts.values():
        resyncs.update(host.state.resyncs)
    return {
        "hosts": len(hosts),
        "late": sum(bool(host.late) for host in hosts.values()),
        "known": sum(host.known for host in hosts.values()),
        "watched": sum(len(host.joined) for host in hosts.values()),
        "rss": rss(os.getpid()),
        "cpu_s": cpu_s(os.getpid()),
        **{reason: resyncs[reason] for reason in REASONS},
    }


async def _serve(
    url: str, numbers: range, size: Size, *, at_once: int, within_s: float, memory: int
) -> None:
    hosts: dict[int, SimulatedHost] = {}
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        functools.partial(asyncio.StreamReaderProtocol, stdin), sys.stdin
    )
    while line := await stdin.readline():
        match line.decode().strip():
            case "start":
                await start_hosts(
                    hosts, numbers, size, url, nobody,
                    at_once=at_once, within_s=within_s, memory=memory,
                )  # fmt: skip
            case "lost":
                await all_lost(hosts.values(), within_s)
            case "back":
                await in_step(hosts.values(), within_s)
        print(json.dumps(summary(hosts)), flush=True)
    for host in hosts.values():
        await host.close()


def _main(url: str, *words: str) -> None:
    first, end, hosts, networks, endpoints, at_once, within_s, memory = map(int, words)
    share_parsing()
    logging.disable(logging.WARNING)
    asyncio.run(
        _serve(
            url,
            range(first, end),
            Size(hosts, networks, endpoints),
            at_once=at_once,
            within_s=within_s,
            memory=memory,
        )
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
