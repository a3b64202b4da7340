"""What a check found: the words of `store check`, `docker check` and `doctor`. A value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `text` names the value and, unless `ok`, the remedy."""

    level: Level
    what: str
    """A short fixed word: connection, version, compaction, clock, permissions, space, ..."""
    text: str
