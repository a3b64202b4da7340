"""A store as a file: JSON lines, complete or not at all (docs/stores.md).

    {"pyvxlan-dump":1,"schema":1,"cluster":"<id>","time":"2026-11-25T10:00:00Z","version":"0.1.0"}
    {"key":"net/<id>","value":{...}}
    {"end":41}

The first line tells what it is, the last how many records stand between. A value that is no
compact JSON stands as base64, so that nothing is lost or changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyvxlan import __version__
from pyvxlan.daemon import records
from pyvxlan.daemon.errors import ConfigError, ConflictError, InvalidError, NotFoundError
from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.kv.watching import VALUE_MAX_BYTES, is_key
from pyvxlan.daemon.records import Phase
from pyvxlan.daemon.upkeep import integrity
from pyvxlan.daemon.upkeep.content import (
    Progress,
    Values,
    durable,
    foreign,
    kind_of,
    open_existing,
    read_all,
    shortened,
    summary,
)

FORMAT = 1
STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class Dump:
    """What a file holds. `digest` tells two files apart."""

    values: Values
    digest: str


async def dump(url: str, path: Path, say: Progress) -> str:
    """Writes a store to a file that only its owner may read, or to stdout for `-`.

    Returns what was written, in a line.

    Raises:
        NotFoundError: There is no cluster in the store.
        DaemonError: The store can't be read or the file not be written; then there is no file.
    """
    store = await open_existing(url)
    try:
        values = await take(store, kind=parse_url(url).kind, say=say)
    finally:
        await store.close()
    write(path, emit(values))
    return f"{len(values)} records: {summary(values)}"


async def take(store: Store, *, kind: str, say: Progress) -> Values:
    """Reads what a dump of a store holds; says what is wrong with it.

    Raises:
        NotFoundError: There is no cluster in the store.
        ConflictError: It is being filled, and not whole.
        StoreError: It can't be read.
    """
    items = await read_all(store, kind=kind)
    values = durable(items)
    if records.META not in values:
        raise NotFoundError("the store holds no cluster: there is nothing to dump")
    transition = _meta(values[records.META]).transition
    if transition and transition.phase is Phase.FILLING:
        raise ConflictError("the store is being filled: dump it when that is done")
    if strangers := foreign(items):
        say(f"left out, as they are not pyvxlan's: {shortened(strangers)}")
    for text in integrity.errors(values):
        say(f"warning: {text}")
    return values | {records.META: records.with_transition(values[records.META], None)}


def emit(values: Values) -> Iterator[str]:
    """Yields the lines of a dump."""
    yield _line(
        {
            "pyvxlan-dump": FORMAT,
            "schema": records.VERSION,
            "cluster": _meta(values[records.META]).cluster,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "version": __version__,
        }
    )
    for key in sorted(values):
        yield _line({"key": key} | _emit_value(values[key]))
    yield _line({"end": len(values)})


def write(path: Path, lines: Iterator[str]) -> None:
    """Writes lines to a new file of mode 0600 that replaces `path` at the end, or to stdout.

    Raises:
        ConfigError: It can't be written; what was there before is there still.
    """
    if path == STDOUT:
        sys.stdout.writelines(lines)
        return
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ConfigError(f"dump {path} is no regular file: take another, or - for stdout")
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise ConfigError(f"dump {path} can't be written: {error.strerror}") from error


def load(path: Path) -> Dump:
    """Reads a dump and checks all of it: format, every record, and that they fit each other.

    Raises:
        ConfigError: The file can't be read.
        InvalidError: Something in it is not acceptable; the message names the line or record.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"dump {path} can't be read: {error.strerror}") from error
    values = parse(content, str(path))
    if problems := integrity.errors(values):
        raise InvalidError(
            f"dump {path}: {'; '.join(problems).replace('in the store', 'in the file')}"
        )
    return Dump(values, hashlib.sha256(content).hexdigest()[:32])


def parse(content: bytes, name: str) -> Values:
    """Reads the lines of a dump; what its records say is not looked at, `meta` aside.

    Raises:
        InvalidError: A line is not what it should be.
    """
    lines = content.splitlines()
    header = _object(lines[0], f"dump {name}, line 1") if lines else {}
    version = header.get("pyvxlan-dump")
    if not isinstance(version, int):
        raise InvalidError(f"{name} is no dump of pyvxlan store dump: its first line says so")
    if version > FORMAT or header.get("schema") != records.VERSION:
        raise InvalidError(
            f"dump {name} has format {version} and schema {header.get('schema')}, this program "
            f"knows {FORMAT} and {records.VERSION}: upgrade it"
        )
    values: dict[str, bytes] = {}
    end: Any = None
    for number, line in enumerate(lines[1:], start=2):
        where = f"dump {name}, line {number}"
        if end is not None:
            raise InvalidError(f"{where}: something follows the end")
        entry = _object(line, where)
        if "end" in entry:
            end = entry["end"]
            continue
        key = entry.get("key")
        if not isinstance(key, str) or not is_key(key) or kind_of(key) not in records.KINDS:
            raise InvalidError(f"{where}: key {key!r} is none of pyvxlan's that outlive a session")
        if key in values:
            raise InvalidError(f"{where}: key {key} stands there twice")
        values[key] = _parse_value(entry, where)
    if end is None:
        raise InvalidError(f"dump {name} has no end: it was cut off; take another dump")
    if end != len(values):
        raise InvalidError(
            f"dump {name} holds {len(values)} records, and its last line says {end}: it was cut "
            "or edited; if you meant to, correct the number"
        )
    if records.META not in values:
        raise InvalidError(f"dump {name} has no record {records.META}")
    return values


def _line(document: dict[str, Any]) -> str:
    return f"{records.emit(document).decode()}\n"


def _meta(value: bytes) -> records.Meta:
    try:
        return records.parse_meta(value)
    except InvalidError as error:
        raise InvalidError(f"store record {records.META}: {error}") from error


def _emit_value(value: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        document = json.loads(value)
        if records.emit(document) == value:
            return {"value": document}
    return {"base64": base64.b64encode(value).decode()}


def _parse_value(entry: dict[str, Any], where: str) -> bytes:
    match entry:
        case {"value": document}:
            value = records.emit(document)
        case {"base64": str(text)}:
            try:
                value = base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise InvalidError(f"{where}: base64: {error}") from error
        case _:
            raise InvalidError(f"{where}: {entry['key']} has neither value nor base64")
    if len(value) > VALUE_MAX_BYTES:
        raise InvalidError(f"{where}: value of {len(value)} bytes: at most {VALUE_MAX_BYTES}")
    return value


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{where} is not JSON: {line[:40]!r}") from error
    if not isinstance(entry, dict):
        raise InvalidError(f"{where} is not a JSON object: {line[:40]!r}")
    return entry
