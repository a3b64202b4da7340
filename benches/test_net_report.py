"""The table of the whole path's benchmark, from samples whose figures are easy to see."""

from __future__ import annotations

from benches.net.report import table


def trip(peer: str, p50_us: float) -> dict[str, object]:
    return {
        "peer": peer,
        "picture": "nic",
        "measurement": "trip",
        "p50_us": p50_us,
        "p99_us": 2 * p50_us,
    }


def rows(printed: str) -> dict[str, list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_a_cell_has_the_median_its_ratio_and_the_spread():
    samples = [trip("kernel", us) for us in (10, 30, 20)]
    samples += [trip("pyvxlan", us) for us in (25, 31, 30)]
    found = rows(table(samples, against="kernel"))
    assert found[""] == ["kernel", "pyvxlan"]
    assert found["round trip p50, us"] == ["20.0 x1.00 (10.0-30.0)", "30.0 x1.50 (25.0-31.0)"]
    assert found["round trip p99, us"] == ["40.0 x1.00 (20.0-60.0)", "60.0 x1.50 (50.0-62.0)"]


def test_a_peer_without_samples_of_a_measurement_is_told_apart_from_a_slow_one():
    connect = {
        "peer": "pyvxlan",
        "picture": "nic",
        "measurement": "connect",
        "connections_per_s": 4000.0,
        "connections": 2000,
        "cpu_s": 1.0,
    }
    found = rows(table([trip("kernel", 10), connect], against="kernel"))
    assert found["connections/s"] == ["-", "4000"]
    assert "TCP, 1 stream, Gbit/s" not in found
