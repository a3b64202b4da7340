"""One table of all micro-benchmarks, with ratios; `scripts/bench` prints it.

    python -m benches.summary [--save DIRECTORY] [--pytest FILE] [--criterion DIRECTORY]

Each line is the median of one benchmark, how many times that of the quickest in its group it is,
and how many times that of the run before on this machine. `DIRECTORY`
keeps the medians of every run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Result:
    """The median time of one benchmark."""

    group: str
    name: str
    median_s: float

    @property
    def key(self) -> str:
        """Its name among all."""
        return f"{self.group} | {self.name}"


def read_pytest(path: Path) -> Iterator[Result]:
    """Reads what `pytest --benchmark-json` wrote."""
    for one in json.loads(path.read_text("utf-8"))["benchmarks"]:
        yield Result(one["group"] or "", one["name"].removeprefix("test_"), one["stats"]["median"])


def read_criterion(directory: Path) -> Iterator[Result]:
    """Reads the newest results that criterion keeps, one directory a benchmark."""
    for path in sorted(directory.glob("**/new/benchmark.json")):
        about = json.loads(path.read_text("utf-8"))
        estimates = json.loads((path.parent / "estimates.json").read_text("utf-8"))
        name = about["full_id"].removeprefix(f"{about['group_id']}/")
        median_ns = estimates["median"]["point_estimate"]
        yield Result(f"rust {about['group_id']}", name, median_ns * 1e-9)


def table(results: Sequence[Result], before: Mapping[str, float]) -> str:
    """Lays out results by group, with ratios to the quickest of the group and to `before`."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.group].append(result)
    rows = [("group", "benchmark", "median", "of the quickest", "of the run before")]
    for group, members in groups.items():
        quickest_s = min(member.median_s for member in members)
        for member in sorted(members, key=lambda one: one.median_s):
            earlier_s = before.get(member.key)
            rows.append(
                (
                    group,
                    member.name,
                    shown(member.median_s),
                    f"x{member.median_s / quickest_s:.2f}" if len(members) > 1 else "",
                    f"x{member.median_s / earlier_s:.2f}" if earlier_s else "",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def shown(seconds: float) -> str:
    """Shows a time with three digits and its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def latest(directory: Path) -> Mapping[str, float]:
    """Gives the medians of the last run that was saved; none before the first."""
    saved = sorted(directory.glob("*.json"))
    found: dict[str, float] = json.loads(saved[-1].read_text("utf-8")) if saved else {}
    return found


def save(directory: Path, results: Sequence[Result]) -> None:
    """Keeps the medians of this run, and of each that it lacks the last one."""
    medians = {**latest(directory), **{result.key: result.median_s for result in results}}
    directory.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    (directory / f"{name}.json").write_text(json.dumps(medians, indent=2), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of what is named, and saves it if asked to."""
    parser = argparse.ArgumentParser(prog="benches.summary")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--pytest", type=Path)
    parser.add_argument("--criterion", type=Path)
    given = parser.parse_args(arguments)
    results = [*(read_criterion(given.criterion) if given.criterion else ())]
    results += read_pytest(given.pytest) if given.pytest else ()
    print(table(results, latest(given.save) if given.save else {}))
    if given.save:
        save(given.save, results)


if __name__ == "__main__":
    main()
