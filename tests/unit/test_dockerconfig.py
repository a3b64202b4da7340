"""Docker's daemon.json: set up, undone, and the user's own left as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvxlan.daemon import dockerconfig
from pyvxlan.daemon.dockerconfig import Change
from pyvxlan.daemon.errors import ConfigError

OURS = "169.254.53.53"
FORMS = [
    "{}",
    "{ }\n",
    '{"debug": true}',
    '{\n    "debug": true,\n    "hosts": ["a", "b"]\n}\n',
    '{\n\t"log-opts": {"dns": ["not this"], "x": "}{,\\""},\n\t"debug": false\n}',
    '{\n  "dns": ["192.0.2.1"],\n  "debug": true\n}\n',
    '{\n  "debug": true,\n  "dns": [\n    "192.0.2.1",\n    "192.0.2.2"\n  ]\n}\n',
    '{"dns": []}',
    '{"dns": ["192.0.2.1"]}',
    "\n\n",
]


@pytest.fixture(autouse=True)
def resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's own servers: a loopback one, and one that containers reach."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\n")
    monkeypatch.setattr(dockerconfig, "RESOLV_CONF", path)
    monkeypatch.setattr(dockerconfig, "RESOLVED", tmp_path / "none")
    return path


class File:
    """A daemon.json and the record of what was done to it."""

    def __init__(self, directory: Path, text: str | None) -> None:
        self.path = directory / "daemon.json"
        self.record = directory / "state" / dockerconfig.RECORD
        if text is not None:
            self.path.write_text(text)

    @property
    def text(self) -> str:
        return self.path.read_text()

    def setup(self, *, dry_run: bool = False) -> Change:
        return dockerconfig.setup(self.path, self.record, OURS, dry_run=dry_run)

    def undo(self, *, dry_run: bool = False) -> Change:
        return dockerconfig.undo(self.path, self.record, OURS, dry_run=dry_run)


def without_dns(text: str) -> dict[str, object]:
    document = json.loads(text) if text.strip() else {}
    return {key: value for key, value in document.items() if key != "dns"}


@pytest.mark.parametrize("text", FORMS)
def test_setup_puts_our_server_first_and_undo_restores_every_byte(
    tmp_path: Path, text: str
) -> None:
    file = File(tmp_path, text)
    there = list(json.loads(text or "{}").get("dns", [])) if text.strip() else []
    assert file.setup().diff()
    assert dockerconfig.servers(file.path) == (OURS, *(there or ["192.0.2.53"]))
    assert without_dns(file.text) == without_dns(text)
    assert not file.setup().diff(), "a second time changes nothing"
    file.undo()
    assert file.text == text
    assert not file.record.exists()
    assert not file.undo().diff()


@pytest.mark.parametrize("text", FORMS)
def test_undo_keeps_what_was_edited_since(tmp_path: Path, text: str) -> None:
    file = File(tmp_path, text)
    there = dockerconfig.servers(file.path)
    file.setup()
    document = json.loads(file.text)
    document["new"] = {"dns": 1}
    file.path.write_text(json.dumps(document, indent=3))
    file.undo()
    assert dockerconfig.servers(file.path) == there
    assert without_dns(file.text) == {**without_dns(text), "new": {"dns": 1}}
    assert ("dns" in json.loads(file.text)) == bool(there)


def test_keys_keep_their_order_and_layout(tmp_path: Path) -> None:
    file = File(tmp_path, '{\n    "debug":   true,\n\n    "hosts": []\n}\n')
    file.setup()
    assert file.text == (
        f'{{\n    "debug":   true,\n\n    "hosts": [],\n\n    "dns": ["{OURS}", "192.0.2.53"]\n}}\n'
    )


def test_file_that_was_not_there_is_made_and_goes_again(tmp_path: Path) -> None:
    file = File(tmp_path / "etc" / "docker", None)
    change = file.setup()
    assert change.before is None
    assert json.loads(file.text) == {"dns": [OURS, "192.0.2.53"]}
    assert file.path.stat().st_mode & 0o777 == 0o644
    file.undo()
    assert not file.path.exists()


def test_dry_run_shows_and_changes_nothing(tmp_path: Path) -> None:
    file = File(tmp_path, '{"debug": true}')
    assert f'+{{"debug": true, "dns": ["{OURS}", "192.0.2.53"]}}' in file.setup(dry_run=True).diff()
    assert file.text == '{"debug": true}'
    assert not file.record.exists()
    file.setup()
    done = file.text
    assert '-{"debug": true, "dns"' in file.undo(dry_run=True).diff()
    assert file.text == done
    assert file.record.exists()


def test_mode_and_links_are_kept(tmp_path: Path) -> None:
    file = File(tmp_path, "{}")
    file.path.chmod(0o600)
    link = tmp_path / "link.json"
    link.symlink_to(file.path)
    dockerconfig.setup(link, file.record, OURS, dry_run=False)
    assert link.is_symlink()
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_our_server_behind_another_comes_to_the_front(tmp_path: Path) -> None:
    file = File(tmp_path, json.dumps({"dns": ["192.0.2.1", OURS]}))
    file.setup()
    assert dockerconfig.servers(file.path) == (OURS, "192.0.2.1")
    file.undo()
    assert dockerconfig.servers(file.path) == ("192.0.2.1",)


def test_undo_without_a_record_takes_our_server_alone(tmp_path: Path) -> None:
    file = File(tmp_path, json.dumps({"dns": [OURS, "192.0.2.1"]}))
    file.undo()
    assert dockerconfig.servers(file.path) == ("192.0.2.1",)


def test_setup_that_broke_off_between_record_and_file_is_undone(tmp_path: Path) -> None:
    file = File(tmp_path, '{"debug": true}')
    file.setup()
    file.path.write_text('{"debug": true}')
    file.undo()
    assert file.text == '{"debug": true}'
    assert not file.record.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "does not hold an object"),
        ('{"dns": "192.0.2.1"}', "not a list of addresses"),
        ('{"dns": [1]}', "not a list of addresses"),
    ],
)
def test_file_that_docker_would_refuse_is_left_alone(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = File(tmp_path, text)
    with pytest.raises(ConfigError, match=reason) as refused:
        file.setup()
    assert str(file.path) in str(refused.value)
    assert file.text == text


def test_servers_behind_systemd_resolved_are_found(
    tmp_path: Path, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolv_conf.write_text("nameserver 127.0.0.53\n")
    behind = tmp_path / "behind.conf"
    behind.write_text("nameserver 192.0.2.7\n")
    monkeypatch.setattr(dockerconfig, "RESOLVED", behind)
    file = File(tmp_path, None)
    file.setup()
    assert dockerconfig.servers(file.path) == (OURS, "192.0.2.7")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    document=st.dictionaries(st.text(), JSON, max_size=4),
    dns=st.none() | st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2"]), max_size=2, unique=True),
    at=st.integers(0, 4),
    indent=st.sampled_from([None, 0, 2, "\t"]),
)
def test_any_file_keeps_its_other_keys_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    document: dict[str, object],
    dns: list[str] | None,
    at: int,
    indent: int | str | None,
) -> None:
    document.pop("dns", None)
    items = list(document.items())
    if dns is not None:
        items.insert(at, ("dns", dns))
    text = json.dumps(dict(items), indent=indent)
    directory = tmp_path_factory.mktemp("any")
    file = File(directory, text)
    file.setup()
    assert [item for item in json.loads(file.text).items() if item[0] != "dns"] == list(
        document.items()
    )
    os.unlink(file.record)
    file.undo()
    left = json.loads(file.text)
    left.pop("dns", None)
    assert list(left.items()) == list(document.items())
