"""What is judged, and the answer: values of `judge` and `words`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyvxlan.daemon.why.facts import FULL, SMALL, Facts, Traced

ALL = frozenset({SMALL, FULL})
LARGE = frozenset({FULL})
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Side:
    """One endpoint and what its host says: nothing of it if the host does not answer."""

    name: str
    host: str
    address: str
    facts: Facts | None = None
    traced: Traced | None = None
    unheard: str = ""
    """Why its host did not answer."""


@dataclass(frozen=True, slots=True)
class Case:
    """Two endpoints of one network."""

    network: str
    a: Side
    b: Side

    @property
    def local(self) -> bool:
        """Whether both are on one host."""
        return self.a.host == self.b.host


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, or where frames end; `remedy` holds a command."""

    code: str
    side: Side
    stop: str
    text: str
    remedy: str
    breaks: frozenset[str] = ALL
    """Which frames can't pass: of which sizes."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stop on the way, and whether the marked frame and its answer were seen there."""

    host: str
    stop: str
    where: str
    request: bool | None
    """None if that could not be watched."""
    reply: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: whether A reaches B; if not, where it ends, why, and what mends it."""

    code: str
    """`ok`, or what is wrong (docs/why.md)."""
    text: str
    remedy: str = ""
    also: tuple[Finding, ...] = ()
    """What else is not as it should be."""
    steps: tuple[Step, ...] = ()

    @property
    def reachable(self) -> bool:
        """Whether A reaches B."""
        return self.code == "ok"

    @classmethod
    def of(cls, culprit: Finding, found: Sequence[Finding], steps: tuple[Step, ...]) -> Verdict:
        """Makes one finding the answer, and the others what else there is."""
        also = tuple(one for one in found if one != culprit)
        return cls(culprit.code, culprit.text, culprit.remedy, also, steps)
