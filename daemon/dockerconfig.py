"""Docker's daemon.json: the daemon's name server at the head of `dns`, all else as it stands.

The file is the user's. So its text is edited, not written anew: other keys, their order and the
white space between them stay. What it was is kept in `<state_dir>/docker-setup.json` until it is
undone.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.upstream import RESOLV_CONF, parse_resolv_conf

DAEMON_JSON = Path("/etc/docker/daemon.json")
RESOLVED = Path("/run/systemd/resolve/resolv.conf")
"""Where systemd-resolved names the servers behind its own 127.0.0.53."""
RECORD = "docker-setup.json"
KEY = "dns"
BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Change:
    """A file before and after; None where it is not there."""

    path: Path
    before: str | None
    after: str | None

    def diff(self) -> str:
        """Shows the change as a unified diff; empty if there is none."""
        return "\n".join(
            difflib.unified_diff(
                (self.before or "").splitlines(),
                (self.after or "").splitlines(),
                "/dev/null" if self.before is None else str(self.path),
                "/dev/null" if self.after is None else str(self.path),
                lineterm="",
            )
        )

    def apply(self) -> None:
        """Makes it so, all at once: whoever reads the file sees one or the other.

        Raises:
            ConfigError: The file can't be written; it is as it was.
        """
        try:
            if self.after is None:
                self.path.unlink(missing_ok=True)
            elif self.after != self.before:
                _replace(self.path, self.after)
        except OSError as error:
            raise ConfigError(
                f"{self.path} can't be written ({error.strerror}): are you root?"
            ) from error


def servers(path: Path) -> tuple[str, ...]:
    """Reads `dns` of a daemon.json; none if there is no file or no such key.

    Raises:
        ConfigError: It can't be read, or Docker would not accept it.
    """
    return _servers(path, _read(path))


def ndots(path: Path, given: Sequence[str] = ()) -> str:
    """Says where an `ndots` is set for all containers; empty if nowhere.

    Docker then keeps a name without a dot that it does not know to itself. Its own options, which
    are `dns-opts` of a daemon.json or those `given` on its command line, replace the host's.

    Raises:
        ConfigError: As of `servers`.
    """
    text = _read(path)
    _servers(path, text)
    listed = json.loads(text).get("dns-opts") if text and text.strip() else None
    options = [*given, *(str(one) for one in listed or [])]
    if options:
        return "Docker's dns-opts" if _sets_ndots(options) else ""
    with contextlib.suppress(OSError):
        for line in RESOLV_CONF.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("options") and _sets_ndots(line.split()):
                return str(RESOLV_CONF)
    return ""


def _sets_ndots(options: Sequence[str]) -> bool:
    return any(option.startswith("ndots:") for option in options)


def setup(path: Path, record: Path, address: str, *, dry_run: bool) -> Change:
    """Puts `address` first in `dns`, and behind it what was there, or else the host's servers.

    The others are asked while the daemon is down. Nothing changes if it is first already.

    Raises:
        ConfigError: A file can't be read or written, or is none that Docker would accept.
    """
    path = Path(os.path.realpath(path))
    before = _read(path)
    there = _servers(path, before)
    if there[:1] == (address,):
        return Change(path, before, before)
    added = () if there else _host_servers(address)
    wanted = [address, *(one for one in there if one != address), *added]
    change = Change(path, before, _with_servers(path, before or "", wanted))
    if not dry_run:
        kept = {"v": 1, "file": str(path), "before": before, "after": change.after}
        kept["added"] = list(added)
        try:
            record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(record, json.dumps(kept), mode=0o600)
        except OSError as error:
            raise ConfigError(
                f"{record} can't be written ({error.strerror}): are you root?"
            ) from error
        change.apply()
    return change


def undo(path: Path, record: Path, address: str, *, dry_run: bool) -> Change:
    """Takes `address` out of `dns` again.

    A file that nobody has touched since `setup` becomes what it was, to the byte; of one that
    somebody has, only what `setup` had added goes.

    Raises:
        ConfigError: As of `setup`.
    """
    path = Path(os.path.realpath(path))
    kept = _kept(record, path)
    before = _read(path)
    if kept and before is not None and before == kept.get("after"):
        after = kept.get("before")
    else:
        after = before
    if isinstance(after, str):
        there = _servers(path, after)
        added = kept.get("added") if after is before else []
        ours = {address, *(added if isinstance(added, list) else [])}
        if address in there:
            after = _with_servers(path, after, [one for one in there if one not in ours])
    change = Change(path, before, after if isinstance(after, str) else None)
    if not dry_run:
        change.apply()
        with contextlib.suppress(OSError):
            record.unlink()
    return change


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} can't be read: {reason}") from error


def _servers(path: Path, text: str | None) -> tuple[str, ...]:
    if text is None or not text.strip():
        return ()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON, Docker can't read it either: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} does not hold an object, so Docker can't read it either")
    found = document.get(KEY, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{path}: {KEY} is {found!r}, not a list of addresses")
    return tuple(found)


def _host_servers(address: str) -> tuple[str, ...]:
    """The host's own name servers, as far as a container can reach them."""
    for path in (RESOLV_CONF, RESOLVED):
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            found = [one for one in parse_resolv_conf(text) if not ip_address(one).is_loopback]
            if reachable := [one for one in found if one != address]:
                return tuple(reachable[:2])
    return ()


def _kept(record: Path, path: Path) -> dict[str, object]:
    try:
        document = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    ours = isinstance(document, dict) and document.get("file") == str(path)
    return document if ours else {}


# Editing the text


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a key of the outermost object, its value, and the text before it lie."""

    key: str
    start: int
    value: int
    end: int


def _members(text: str) -> Iterator[_Member]:
    """Finds the keys of an object; `text` is valid JSON."""
    decoder = json.JSONDecoder()
    at = text.index("{") + 1
    while True:
        start = _skip(text, at)
        if text[start] == "}":
            return
        key, after = decoder.raw_decode(text, start)
        value = _skip(text, _skip(text, after) + 1)
        _, end = decoder.raw_decode(text, value)
        yield _Member(key, start, value, end)
        at = _skip(text, end)
        if text[at] == ",":
            at += 1


def _skip(text: str, at: int) -> int:
    while text[at] in BLANK:
        at += 1
    return at


def _with_servers(path: Path, text: str, wanted: Sequence[str]) -> str:
    """Gives the text with other servers; without the key if there are none."""
    if not text.strip():
        text = "{}\n"
    members = list(_members(text))
    held = next((number for number, one in enumerate(members) if one.key == KEY), None)
    if held is not None and wanted:
        member = members[held]
        edited = text[: member.value] + json.dumps(wanted) + text[member.end :]
    elif held is not None:
        edited = _without(text, members, held)
    elif not wanted:
        edited = text
    elif members:
        last = members[-1]
        before = members[-2].end if len(members) > 1 else text.index("{") + 1
        gap = text[before : last.start].lstrip(",") or " "
        edited = f'{text[: last.end]},{gap}"{KEY}": {json.dumps(wanted)}{text[last.end :]}'
    else:
        open_, close = text.index("{") + 1, text.rindex("}")
        edited = f'{text[:open_]}\n    "{KEY}": {json.dumps(wanted)}\n{text[close:]}'
    if _servers(path, edited) != tuple(wanted):
        raise ConfigError(f"{path} has a form that can't be edited: set {KEY} to {list(wanted)}")
    return edited


def _without(text: str, members: Sequence[_Member], number: int) -> str:
    member = members[number]
    if number + 1 < len(members):
        return text[: member.start] + text[members[number + 1].start :]
    if number:
        return text[: members[number - 1].end] + text[member.end :]
    return text[: text.index("{") + 1] + text[text.rindex("}") :]


def _replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a file anew, with the mode and the owner of the one that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                held = path.stat()
                mode = held.st_mode & 0o7777
                os.fchown(file.fileno(), held.st_uid, held.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
