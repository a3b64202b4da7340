"""A store's URL: what it may hold, and what is said of one that can't be used."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.open import CLIENTS, open_store
from pyvxlan.daemon.kv.url import OPTIONS, PORTS, parse_url, read_secret, same_store

MISSING = "etcd+python-etcd3"
"""The client whose library is not here: it has an environment of its own."""


@pytest.mark.parametrize("url", ["sqlite:////x/y.db", "sqlite:///x/y.db"])
def test_both_ways_to_write_a_path_mean_one(url: str) -> None:
    assert parse_url(url).path == Path("/x/y.db")


def test_members_get_default_ports_and_the_default_prefix() -> None:
    url = parse_url("etcd://h1,h2:2479,[fd00::1],[fd00::2]:99")
    assert url.members == (("h1", 2379), ("h2", 2479), ("fd00::1", 2379), ("fd00::2", 99))
    assert url.prefix == "pyvxlan/v1"
    assert not url.tls


def test_hosts_are_named_as_people_name_them() -> None:
    url = parse_url("etcd://store_1,bücher.example,h.example.,10.0.0.1,3com")
    names = [name for name, _ in url.members]
    assert names == ["store_1", "bücher.example", "h.example.", "10.0.0.1", "3com"]


@pytest.mark.parametrize(("kind", "port"), [("etcd", 2379), ("consul", 8500), ("zk", 2181)])
def test_every_kind_has_its_port(kind: str, port: int) -> None:
    assert parse_url(f"{kind}://host/a/b/").members == (("host", port),)
    assert parse_url(f"{kind}://host/a/b/").prefix == "a/b"


def test_options_are_files_and_names() -> None:
    url = parse_url("etcd://h?ca=/ca.pem&cert=/c.pem&key=/k.pem&user=me&password-file=/pw")
    assert url.tls
    assert (url.ca, url.cert, url.key) == (Path("/ca.pem"), Path("/c.pem"), Path("/k.pem"))
    assert (url.user, url.password_file) == ("me", Path("/pw"))
    assert parse_url("consul://h?tls=true&token-file=/t").token_file == Path("/t")
    quoted = parse_url("etcd://h/a%2Fb/?ca=/a%20b+%26.pem&user=me+you&password-file=/pw")
    assert (quoted.prefix, quoted.ca, quoted.user) == ("a/b", Path("/a b+&.pem"), "me+you")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("/x/y.db", "sqlite:///x/y.db"),
        ("", "sqlite:////var/lib/pyvxlan/store.db"),
        ("etc://h", "did you mean etcd"),
        ("redis://h", "known are"),
        ("etcd+aetcd://h", "did you mean etcd"),
        ("sqlite://host/y.db", "absolute path"),
        ("sqlite:///", "absolute path"),
        ("sqlite:////x/?a=b", "absolute path"),
        ("etcd://", "no host name"),
        ("etcd://h1,,h2", "no host name"),
        ("etcd://h:0", "port '0'"),
        ("etcd://h:99999", "port '99999'"),
        ("etcd://h:", "member 'h:': write a port after the colon"),
        (f"etcd://h:{'9' * 5000}", "port"),
        ("etcd://h1 h2", "'h1 h2' can't be a host's name"),
        ("etcd://h1;h2", "members are parted by commas"),
        ("etcd://h1:2379;h2:2379", "parted by commas, unlike 'h1:2379;h2:2379'"),
        ("etcd://http://h1:2379", "one scheme, before the first member alone, as in etcd://host1"),
        ("etcd://h1:2379,etcd://h2:2379", "one scheme, before the first member alone"),
        ("etcd+python-etcd3://http://h1:2379", "as in etcd://host1:2379,host2:2379"),
        ("etcd://a..b", "'a..b' can't be a host's name"),
        ("zk://-h", "'-h' can't be a host's name"),
        (f"consul://{'a' * 64}.b", "can't be a host's name"),
        ("etcd://fd00::1:2379", "brackets"),
        ("etcd://[fd00::1", "IPv6"),
        ("etcd://h/a//b", "prefix"),
        ("etcd://h/a b", "prefix"),
        ("etcd://h#x", "#x"),
        ("etcd://h?token-file=/x", "not known; name a user with user=NAME&password-file=PATH"),
        ("consul://h?user=me", "not known; name a token's file with token-file=PATH"),
        ("etcd://h?passwordfile=/x", "did you mean password-file"),
        ("etcd://h?ca=ca.pem", "absolute path"),
        ("etcd://h?ca=", "with a value"),
        ("etcd://h?ca=/a&ca=/b", "given once"),
        ("etcd://h?cert=/c.pem", "both cert and key"),
        ("etcd://h?user=me", "both user and password-file"),
        ("etcd://h?tls=maybe", "true or false"),
        ("etcd://h?tls=false&ca=/a", "contradicts"),
    ],
)
def test_wrong_url_is_refused_with_the_remedy(url: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "etcd://me:hunter2@h",
        "etcd://h?password=hunter2",
        "etcd://h:0?password=hunter2",
        "etcd://h/a b?password=hunter2",
        "ftp://me:hunter2@h",
    ],
)
def test_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_url(url)
    assert "hunter2" not in str(refused.value)


def test_secret_file_must_be_private_and_hold_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pw"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    assert read_secret(path, "password") == "hunter2"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret(path, "password")
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        read_secret(path, "password")
    for more in ("hunter2\n\n", "hunter2\nmore", "\ufeffhunter2\n", "hunt\0er2"):
        path.write_text(more)
        with pytest.raises(ConfigError, match="on one line, no byte order mark") as refused:
            read_secret(path, "password")
        assert "hunt" not in str(refused.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_secret(tmp_path / "none", "password")


def test_secret_is_read_of_a_regular_file_only(tmp_path: Path) -> None:
    """A pipe would stop the daemon until somebody writes to it; no device shall become private."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is no regular file"):
            read_secret(path, "password")
    link = tmp_path / "link"
    link.symlink_to("pw")
    (tmp_path / "pw").touch(mode=0o600)
    (tmp_path / "pw").write_text("two words\r\n")
    assert read_secret(link, "password") == "two words"


def test_every_kind_that_a_url_may_name_has_its_client() -> None:
    assert set(CLIENTS) == set(PORTS) == set(OPTIONS)
    for kind, (module, name, _) in CLIENTS.items():
        if kind != MISSING:
            assert hasattr(import_module(module), name)


async def test_missing_library_is_told_with_the_extra_that_brings_it() -> None:
    told = r"needs the Python package etcd3: pip install 'pyvxlan\[python-etcd3\]'"
    with pytest.raises(ConfigError, match=told):
        await open_store(f"{MISSING}://h")


def test_two_clients_of_one_server_lead_to_the_same_store() -> None:
    one, other = parse_url("etcd://h1,h2/p"), parse_url("etcd+python-etcd3://h2:2379/p")
    assert same_store(one, other)
    assert not same_store(one, parse_url("etcd+python-etcd3://h2:2379/q"))
