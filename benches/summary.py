"""One table of everything that was measured; `scripts/bench` prints it at its end.

    python -m benches.summary [--criterion DIRECTORY] [--pytest FILE] [--memory FILE] [--net FILE]
                              [--goals] [--save DIRECTORY]

A line is one thing that was measured of one of those that were: median, lowest and highest, its
ratio to one of the others, what processors spent meanwhile, what is aimed at and whether it is
reached, and its ratio to the run before on this machine. `DIRECTORY` keeps every run, with the same
in it, as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benches.goals import GOALS, Goal
from benches.net.report import FIGURES, LOSS

VARIANT = re.compile(r" (?=(?:in|over|captured|dropped)\b)")
"""Where the name of a benchmark in Rust goes over to what it is a variant of."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line: what was measured (`group`) of whom (`name`)."""

    group: str
    name: str
    median: float
    lowest: float
    highest: float
    unit: str = ""
    """`s` if it is a time; else the group or name says it."""
    base: str = ""
    """Name of the one in the group that ratios are taken to; else they are to the quickest."""
    cpu_s: float | None = None
    cpu_for: str = ""

    @property
    def key(self) -> str:
        """Its name among all."""
        return f"{self.group} | {self.name}"


def of_values(group: str, name: str, values: Sequence[float], **more: Any) -> Result:
    """The result of several values of one thing."""
    return Result(group, name, median(values), min(values), max(values), **more)


def read_criterion(directory: Path) -> Iterator[Result]:
    """Reads the newest results that criterion keeps, one directory a benchmark.

    Only variants of one thing are a group, as ratios of different things say nothing: `publish one
    moved entry` `in 1k` and `in 1M`. What is captured or dropped is held against what is not.
    """
    for path in sorted(directory.glob("**/new/benchmark.json")):
        about = json.loads(path.read_text("utf-8"))
        sample = json.loads((path.parent / "sample.json").read_text("utf-8"))
        median_ns = json.loads((path.parent / "estimates.json").read_text("utf-8"))["median"]
        each_ns = [ns / n for ns, n in zip(sample["times"], sample["iters"], strict=True)]
        area, _, name = about["full_id"].partition("/")
        thing, *variant = VARIANT.split(name, maxsplit=1)
        yield Result(
            f"rust {area}: {thing}",
            variant[0] if variant else thing,
            median_ns["point_estimate"] * 1e-9,
            min(each_ns) * 1e-9,
            max(each_ns) * 1e-9,
            "s",
            base=thing if area == "lane" else "",
        )


def read_pytest(path: Path) -> Iterator[Result]:
    """Reads what `pytest --benchmark-json` wrote."""
    for one in json.loads(path.read_text("utf-8"))["benchmarks"]:
        name, stats = one["name"].removeprefix("test_"), one["stats"]
        yield Result(one["group"] or "", name, stats["median"], stats["min"], stats["max"], "s")


def read_memory(path: Path) -> Iterator[Result]:
    """Reads what `benches.memory` wrote: values by what and whose; ratios are to the first."""
    for group, members in json.loads(path.read_text("utf-8")).items():
        for name, values in members.items():
            yield of_values(group, name, values, base=next(iter(members)))


def read_net(written: Mapping[str, Any]) -> Iterator[Result]:
    """Reads what `benches.net` wrote: samples, and which peer ratios are to."""
    by_place: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for sample in written["samples"]:
        by_place[sample["picture"], sample["measurement"], sample["peer"]].append(sample)
    for picture in dict.fromkeys(place[0] for place in by_place):
        for figure in FIGURES:
            for place, samples in by_place.items():
                if place[:2] == (picture, figure.measurement):
                    yield of_values(
                        f"{picture}: {figure.title}",
                        place[2],
                        [figure.read(sample) for sample in samples],
                        base=written["against"],
                        cpu_s=figure.cpu_s and median(map(figure.cpu_s, samples)),
                        cpu_for=figure.cpu_for,
                    )


def out_of_order(samples: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Tells whose datagrams did not all stay in order: a line for each peer and picture."""
    late: dict[tuple[str, str], int] = defaultdict(int)
    for sample in samples:
        late[sample["peer"], sample["picture"]] += sample.get("disorder", 0)
    for (peer, picture), count in late.items():
        if count:
            yield f"out of order: {count:,} datagrams of {peer} in {picture}"


def lines(results: Iterable[Result], before: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every result by group, with its ratios, one of them to its median in `before`, and goals."""
    groups: dict[str, dict[str, Result]] = defaultdict(dict)
    for result in results:
        groups[result.group][result.name] = result
    found = []
    for members in groups.values():
        quickest = min(members.values(), key=lambda one: one.median)
        for one in sorted(members.values(), key=lambda one: 0 if one.base else one.median):
            base = members.get(one.base or quickest.name) if len(members) > 1 else None
            line = {**asdict(one), "base": base and base.name}
            line["ratio"] = one.median / base.median if base and base.median else None
            line["before"] = one.median / before[one.key] if before.get(one.key) else None
            line["goals"] = [
                _reached(goal, one, members)
                for goal in GOALS
                if (goal.group, goal.name) == (one.group, one.name)
            ]
            found.append(line)
    return found


def _reached(goal: Goal, one: Result, members: Mapping[str, Result]) -> dict[str, Any]:
    """What a goal asks, and what was reached; that is None if the other one was not measured."""
    reached = None
    if not goal.of:
        reached = one.median
    elif goal.of in members and members[goal.of].median:
        reached = one.median / members[goal.of].median
    met = None if reached is None else goal.met(reached)
    asked = {"of": goal.of, "bound": goal.bound, "most": goal.most}
    return {**asked, "reached": reached, "met": met}


HEADER = ("what", "of", "median", "lowest-highest", "ratio", "CPU s", "goal", "run before")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lays out lines, without the columns that have nothing."""
    rows, group = [HEADER], None
    for line in found:
        spread = [shown(line[end], line["unit"]) for end in ("lowest", "highest")]
        rows.append(
            (
                line["group"] if line["group"] != group else "",
                line["name"],
                shown(line["median"], line["unit"]),
                "-".join(spread) if line["lowest"] != line["highest"] else "",
                _times(line["ratio"]),
                f"{shown(line['cpu_s'])} per {line['cpu_for']}" if line["cpu_s"] else "",
                "; ".join(map(_goal, line["goals"])),
                _times(line["before"]),
            )
        )
        group = line["group"]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    laid = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in zip(*columns, strict=True)
    ]
    laid.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(laid)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"x{ratio:.2f}"


def _goal(goal: Mapping[str, Any]) -> str:
    of = f" x {goal['of']}" if goal["of"] else ""
    said = f"{'at most' if goal['most'] else 'at least'} {shown(goal['bound'])}{of}: "
    if goal["reached"] is None:
        return f"{said}not measured"
    return f"{said}{shown(goal['reached'])}, {'reached' if goal['met'] else 'MISSED'}"


def shown(value: float, unit: str = "") -> str:
    """Shows a value with three digits or all before the point; a time with its unit."""
    if unit == "s":
        unit, scale = next(
            (each for each in (("s", 1.0), ("ms", 1e3), ("us", 1e6)) if value * each[1] >= 1),
            ("ns", 1e9),
        )
        return f"{shown(value * scale)} {unit}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:,.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def machine() -> dict[str, Any]:
    """What this machine is."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "model": models[0] if models else platform.machine(),
        "python": platform.python_version(),
    }


def latest(directory: Path) -> Mapping[str, float]:
    """Gives the last median of each line that was saved; none before the first run."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        for line in json.loads(path.read_text("utf-8"))["results"]:
            found[f"{line['group']} | {line['name']}"] = line["median"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of what is named, and saves it if asked to."""
    parser = argparse.ArgumentParser(prog="benches.summary")
    parser.add_argument("--criterion", type=Path)
    parser.add_argument("--pytest", type=Path)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--net", type=Path)
    parser.add_argument("--goals", action="store_true", help="only the lines that have a goal")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args(arguments)
    results: list[Result] = []
    for read, path in (
        (read_criterion, given.criterion),
        (read_pytest, given.pytest),
        (read_memory, given.memory),
    ):
        results += read(path) if path else ()
    net = json.loads(given.net.read_text("utf-8")) if given.net else {}
    results += read_net(net) if net else ()
    now = datetime.now(UTC)
    run = {
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "left_out": net.get("left_out", {}),
        "results": lines(results, latest(given.save) if given.save else {}),
    }
    print(
        "{date:.10}, Linux {kernel}, {processors} processors ({model})\n".format(
            **run, **run["machine"]
        )
    )
    print(table([line for line in run["results"] if line["goals"] or not given.goals]))
    print(f"\n{LEGEND}")
    for peer, needs in run["left_out"].items():
        print(f"left out: {peer}, which needs {', '.join(needs)}")
    for told in out_of_order(net.get("samples", ())):
        print(told)
    if given.save:
        given.save.mkdir(parents=True, exist_ok=True)
        path = given.save / f"{now:%Y%m%dT%H%M%S.%f}.json"
        path.write_text(json.dumps(run, indent=1) + "\n", "utf-8")
        print(f"for machines: {path}")


LEGEND = f"""\
ratio: to the line of x1.00; nic: at most 1500 bytes a frame, veth: super-packets cross uncut;
UDP at a loss of at most {LOSS:.1%} if not flat out"""


if __name__ == "__main__":
    main()
