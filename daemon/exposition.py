"""Families of samples as text, in Prometheus' exposition format, version 0.0.4. Pure.

`prometheus_client` takes 7 us for a sample, which is a third of a second with 1,000 networks;
here a sample is one formatted line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

PREFIX = "pyvxlan_"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Family:
    """All samples of one name.

    Args:
        kind: A `counter` gets `_total` behind its name.
        name: Without `pyvxlan_`.
        text: What it is, one line.
        labels: Names of the labels, in the order in which `add` takes their values.
    """

    def __init__(self, kind: Literal["counter", "gauge"], name: str, text: str, *labels: str):
        full = f"{PREFIX}{name}" + ("_total" if kind == "counter" else "")
        self._lines = [f"# HELP {full} {text}\n# TYPE {full} {kind}\n"]
        pairs = ",".join(f'{label}="%s"' for label in labels)
        self._form = f"{full}{{{pairs}}} %s\n" if labels else f"{full} %s\n"

    def add(self, value: float, *labels: str) -> None:
        """Adds a sample; `labels` are plain or went through `label`."""
        self._lines.append(self._form % (*labels, value))

    def __str__(self) -> str:
        return "".join(self._lines)


class Histogram:
    """All samples of one histogram.

    Args:
        name: Without `pyvxlan_`; with the unit.
        text: What it is, one line.
        label: Name of its one label.
    """

    def __init__(self, name: str, text: str, label: str) -> None:
        full = f"{PREFIX}{name}"
        self._lines = [f"# HELP {full} {text}\n# TYPE {full} histogram\n"]
        self._bucket = f'{full}_bucket{{{label}="%s",le="%s"}} %d\n'
        self._rest = f'{full}_sum{{{label}="%s"}} %s\n{full}_count{{{label}="%s"}} %d\n'

    def add(self, buckets: Sequence[tuple[float, int]], total: float, label: str) -> None:
        """Adds one histogram: upper bounds in order, each with the number in its bucket alone.

        The last bound is infinity; `total` is the sum of all values.
        """
        count = 0
        for bound, within in buckets:
            count += within
            shown = "+Inf" if bound == float("inf") else bound
            self._lines.append(self._bucket % (label, shown, count))
        self._lines.append(self._rest % (label, total, label, count))

    def __str__(self) -> str:
        return "".join(self._lines)


def label(text: str) -> str:
    """Escapes a label's value that is not known to be plain."""
    return text.translate(_ESCAPES)


def gauge(name: str, text: str, value: float) -> Family:
    """A family of one sample without labels."""
    return _single(Family("gauge", name, text), value)


def counter(name: str, text: str, value: float) -> Family:
    """A family of one sample without labels."""
    return _single(Family("counter", name, text), value)


def _single(family: Family, value: float) -> Family:
    family.add(value)
    return family
