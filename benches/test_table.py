"""Time to fill, change and ask a forwarding table from Python.

Input: MACs 02:00:xx:xx:xx:xx, spread over 100 VTEPs; tables of 1,000 and 100,000 entries. Each
benchmark checks its own result.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pyvxlan import ForwardingTable, Unicast

SIZES = [1_000, 100_000]


def mac(number: int) -> bytes:
    return b"\x02\x00" + number.to_bytes(4, "big")


def vtep(number: int) -> str:
    return f"198.18.0.{number % 100 + 1}"


def entries(size: int) -> dict[bytes, str]:
    return {mac(number): vtep(number) for number in range(size)}


@pytest.fixture(params=SIZES, scope="module")
def table(request):
    table = ForwardingTable(42)
    table.apply(entries(request.param))
    return table


@pytest.mark.benchmark(group="fill a table at once")
@pytest.mark.parametrize("size", SIZES)
def test_fill(benchmark, size):
    add = entries(size)

    def fill() -> ForwardingTable:
        table = ForwardingTable(42)
        table.apply(add)
        return table

    assert len(benchmark(fill)) == size


@pytest.mark.benchmark(group="add one entry and remove it")
def test_change_one(benchmark, table):
    size = len(table)

    def change() -> None:
        table.apply({b"\x06" * 6: "198.18.0.1"})
        table.apply(remove=[b"\x06" * 6])

    benchmark(change)
    assert len(table) == size


@pytest.mark.benchmark(group="look up one MAC")
def test_lookup(benchmark, table):
    assert benchmark(table.lookup, mac(777)) == ip_address(vtep(777))


@pytest.mark.benchmark(group="decide on one frame")
def test_egress(benchmark, table):
    frame = mac(777) + b"\x06" * 6 + b"\x88\xb5" + bytes(100)
    assert benchmark(table.egress, frame) == Unicast(ip_address(vtep(777)))


@pytest.mark.benchmark(group="read a table back")
def test_dump(benchmark, table):
    assert len(benchmark(table.dump).fdb) == len(table)
