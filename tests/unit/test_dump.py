"""The file of `store dump`: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import ConfigError, InvalidError
from pyvxlan.daemon.upkeep import dump
from tests.unit import stored


def lines_of(values: dict[str, bytes]) -> list[str]:
    return list(dump.emit(values))


def content(lines: list[str]) -> bytes:
    return "".join(lines).encode()


def test_dump_comes_back_as_it_was() -> None:
    values = stored.cluster()
    assert dump.parse(content(lines_of(values)), "x") == values


@given(
    st.dictionaries(
        st.from_regex(r"(net|cfg)/(?!\.{1,2}$)[!-.0-~]{1,20}", fullmatch=True), st.binary()
    )
)
def test_any_value_comes_back_as_it_was(values: dict[str, bytes]) -> None:
    held = {records.META: stored.cluster()[records.META]} | values
    assert dump.parse(content(lines_of(held)), "x") == held


def test_header_tells_what_it_is() -> None:
    header = json.loads(lines_of(stored.cluster())[0])
    assert header["pyvxlan-dump"] == 1
    assert header["schema"] == 1
    assert header["cluster"] == stored.CLUSTER


def test_values_are_readable() -> None:
    entry = next(json.loads(line) for line in lines_of(stored.cluster()) if '"net/' in line)
    assert entry["value"]["name"] == "ov_net1"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda lines: [], "x is no dump"),
        (lambda lines: ["nonsense"], "dump x, line 1 is not JSON: b'nonsense'"),
        (lambda lines: ["{}\n"], "x is no dump"),
        (lambda lines: lines[:-1], "dump x has no end: it was cut off"),
        (lambda lines: [*lines[:-1], lines[-1][:5]], "is not JSON"),
        (lambda lines: [*lines[:3], *lines[4:]], "records, and its last line says"),
        (lambda lines: [*lines, "{}\n"], "something follows the end"),
        (lambda lines: [*lines[:-1], lines[1], lines[-1]], "stands there twice"),
        (lambda lines: [lines[0].replace('"schema":1', '"schema":2'), *lines[1:]], "schema 2"),
        (lambda lines: [lines[0], '{"key":"alive/x","value":1}\n', '{"end":1}'], "'alive/x'"),
        (lambda lines: [lines[0], '{"key":"else","value":1}\n', '{"end":1}'], "'else'"),
        (lambda lines: [lines[0], '{"key":"cfg"}\n', '{"end":1}'], "neither value nor base64"),
        (lambda lines: [lines[0], '{"key":"cfg","base64":"?"}\n', '{"end":1}'], "base64"),
        (lambda lines: [lines[0], '{"end":0}\n'], "has no record meta"),
        (lambda lines: [lines[0], "[1]\n", '{"end":1}\n'], "is not a JSON object"),
        (
            lambda lines: [lines[0], f'{{"key":"cfg","value":"{"a" * 70_000}"}}\n', '{"end":1}'],
            "at most 65536",
        ),
    ],
)
def test_file_that_is_not_whole_is_refused(change, complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidError) as caught:
        dump.parse(content(change(lines_of(stored.cluster()))), "x")
    assert complaint in str(caught.value)


def test_records_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    values = stored.cluster()
    values.pop(next(key for key in values if key.startswith("vni/")))
    path = tmp_path / "store.dump"
    dump.write(path, dump.emit(values))
    with pytest.raises(InvalidError, match=r"lacks vni/\d+; repair or delete them in the file"):
        dump.load(path)


def test_file_is_for_its_owner_alone_and_whole_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.dump"
    path.write_text("former")

    def breaks():  # type: ignore[no-untyped-def]
        yield "first\n"
        raise InvalidError("broke off")

    with pytest.raises(InvalidError):
        dump.write(path, breaks())
    assert [path.read_text(), *tmp_path.iterdir()] == ["former", path]
    dump.write(path, iter(["one\n"]))
    assert path.read_text() == "one\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no/dump can't be written: No such file"):
        dump.write(tmp_path / "no" / "dump", iter([]))
    with pytest.raises(ConfigError, match="/dev/null is no regular file"):
        dump.write(Path("/dev/null"), iter([]))


def test_dump_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none can't be read: No such file"):
        dump.load(tmp_path / "none")
