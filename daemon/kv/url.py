"""The URL that names a store: kind, members, prefix and options, checked. Pure.

    etcd://h1:2379,h2:2379/prefix?ca=/etc/pyvxlan/ca.pem&user=pyvxlan&password-file=/etc/...

Secrets stand in files that the URL names, never in the URL: it is shown by `ps`, logs and `status`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from pyvxlan.daemon.config import suggestion
from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.watching import PREFIX_MAX_BYTES, is_key

Member: TypeAlias = tuple[str, int]
"""Host name or address, and port."""

DEFAULT_PREFIX = "pyvxlan/v1"
PORTS: Mapping[str, int] = {"etcd": 2379, "etcd+python-etcd3": 2379, "consul": 8500, "zk": 2181}
"""Kinds of remote stores, with their default port."""
KINDS = ("sqlite", *PORTS)
EXAMPLES: Mapping[str, str] = {
    "sqlite": "sqlite:////var/lib/pyvxlan/store.db",
    "etcd": "etcd://host1:2379,host2:2379",
    "consul": "consul://127.0.0.1:8500",
    "zk": "zk://host1:2181,host2:2181",
}
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_URL = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
"""RFC 3986, appendix B. The standard library takes brackets for one host alone, not for a list."""
TLS_OPTIONS = frozenset({"tls", "ca", "cert", "key"})
OPTIONS: Mapping[str, Set[str]] = {
    "etcd": TLS_OPTIONS | {"user", "password-file"},
    "etcd+python-etcd3": TLS_OPTIONS | {"user", "password-file"},
    "consul": TLS_OPTIONS | {"token-file"},
    "zk": TLS_OPTIONS | {"user", "password-file"},
}


_USER = "name a user with user=NAME&password-file=PATH"
CREDENTIALS: Mapping[str, str] = {
    "etcd": _USER,
    "etcd+python-etcd3": _USER,
    "consul": "name a token's file with token-file=PATH",
    "zk": _USER,
}
"""By kind: how to say who this host is."""
SECRETS = frozenset({"user", "username", "password", "password-file", "token", "token-file"})
"""What somebody might write who wants to say that."""


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store's URL, taken apart.

    Exactly one of `path` (of `sqlite`) and `members` is set.
    """

    text: str
    kind: str
    path: Path | None = None
    members: tuple[Member, ...] = ()
    prefix: str = DEFAULT_PREFIX
    """Where the keys begin, without a slash at either end."""
    tls: bool = False
    ca: Path | None = None
    """Certificates to trust; the system's own if left out."""
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None

    @property
    def server(self) -> str:
        """The kind of store, with whatever client: `etcd+python-etcd3` is `etcd`."""
        return self.kind.partition("+")[0]

    @property
    def wide_watches(self) -> bool:
        """Whether one watch of everything may take the place of many.

        Not on Consul, which tells a change by telling all that is watched, and not on ZooKeeper,
        which watches each record by itself; on SQLite there is nothing to gain.
        """
        return self.server == "etcd"

    def __str__(self) -> str:
        """The URL as it was written; holds no secret."""
        return self.text


def parse_url(text: str) -> StoreUrl:
    """Reads a store's URL.

    Raises:
        ConfigError: It can't be used; the message names the part and the remedy.
    """
    if text in {"memory:", "memory://"}:
        return StoreUrl(text, "memory")
    parts = _URL.fullmatch(text)
    if parts is None:
        raise ConfigError(f"store {_public(text)!r} is not a URL: {_examples()}")
    kind, members, path, query, fragment = (part or "" for part in parts.groups())
    kind = kind.lower()
    if not kind and text.startswith("/"):
        raise ConfigError(f"store {text!r} is a path: write sqlite://{text}")
    if kind == "sqlite":
        return StoreUrl(text, "sqlite", path=sqlite_path(text))
    if kind not in PORTS:
        hint = suggestion(kind, list(KINDS)) if kind else _examples()
        raise ConfigError(f"store {_public(text)!r} is of no kind that pyvxlan knows: {hint}")
    if fragment:
        raise ConfigError(f"store {_public(text)!r}: there is nothing for #{fragment}")
    if members.endswith(":") and path.startswith("//"):
        raise ConfigError(
            f"store {_public(text)!r}: write one scheme, before the first member alone, as in "
            f"{EXAMPLES[kind.partition('+')[0]]}"
        )
    if "@" in members:
        raise ConfigError(
            f"store {_public(text)!r}: name the user with ?user=NAME and the password's file with "
            "&password-file=PATH (Consul: ?token-file=PATH); a URL is no place for secrets"
        )
    return StoreUrl(
        text,
        kind,
        members=tuple(_member(part, PORTS[kind], _public(text)) for part in members.split(",")),
        prefix=_prefix(unquote(path), _public(text)),
        **_options(kind, query, text),  # type: ignore[arg-type]
    )


def same_store(one: StoreUrl, other: StoreUrl) -> bool:
    """Tells whether two URLs lead to the same data: members may come and go, not all at once."""
    if one.path or other.path or one.text == other.text:
        return (one.path, one.kind) == (other.path, other.kind)
    return (
        one.server == other.server
        and one.prefix == other.prefix
        and bool(set(one.members) & set(other.members))
    )


def member_name(member: Member) -> str:
    """Writes a member as the URL does."""
    host, port = member
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def sqlite_path(url: str) -> Path:
    """Reads the path out of `sqlite:////path` or `sqlite:///path`; both mean `/path`.

    Raises:
        ConfigError: It is no such URL.
    """
    parts = urlsplit(url)
    path = unquote(parts.path).lstrip("/")
    if parts.netloc or parts.query or parts.fragment or not path or path.endswith("/"):
        raise ConfigError(
            f"store {url!r} must name an absolute path to a file, as {EXAMPLES['sqlite']} does"
        )
    return Path("/", path)


def read_secret(path: Path, what: str) -> str:
    """Reads a password or token from its file; one newline at the end is not part of it.

    The file is read again whenever the secret is needed, so it can't be a pipe.

    Raises:
        ConfigError: The file can't be read, is empty, holds more, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{what} file {path} can't be read: it is no regular file")
        secret = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{what} file {path} can't be read: {reason}") from error
    if mode & 0o077:
        raise ConfigError(f"{what} file {path} may be read by others: chmod 600 {path}")
    if not secret:
        raise ConfigError(f"{what} file {path} is empty: it must hold the {what}")
    if not secret.isprintable():
        raise ConfigError(
            f"{what} file {path} must hold the {what} alone, on one line, no byte order mark "
            "and no control characters"
        )
    return secret


def _member(part: str, default_port: int, text: str) -> Member:
    host, port_text = part, ""
    if part.startswith("["):
        host, bracket, rest = part[1:].partition("]")
        port_text = rest.removeprefix(":")
        try:
            IPv6Address(host)
        except ValueError:
            bracket = ""
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError(
                f"store {text!r}: member {part!r} is not [IPv6 address]:port such as [fd00::1]:2379"
            )
    elif ":" in part:
        host, _, port_text = part.rpartition(":")
        if ":" in host and not re.fullmatch("[0-9A-Fa-f:.]+", part):
            raise ConfigError(f"store {text!r}: members are parted by commas, unlike {part!r}")
        if ":" in host:
            raise ConfigError(
                f"store {text!r}: member {part!r}: write an IPv6 address in brackets, [fd00::1]"
            )
        if not port_text:
            raise ConfigError(
                f"store {text!r}: member {part!r}: write a port after the colon, or leave it out"
            )
    if not host:
        raise ConfigError(f"store {text!r}: a member has no host name: {_examples()}")
    if ":" not in host and not _is_host_name(host):
        raise ConfigError(
            f"store {text!r}: {host!r} can't be a host's name; members are parted by commas"
        )
    if not port_text:
        return host, default_port
    if not (re.fullmatch("[0-9]{1,5}", port_text) and 1 <= int(port_text) <= 65535):
        raise ConfigError(
            f"store {text!r}: port {port_text!r} of member {host} must be a number up to 65535"
        )
    return host, int(port_text)


def _is_host_name(text: str) -> bool:
    """Tells whether a resolver could be asked for it: labels of a domain name, or IPv4."""
    try:
        name = text.encode("idna").decode()
    except UnicodeError:
        return False
    return len(name) <= 253 and HOST_NAME.fullmatch(name) is not None


def _prefix(path: str, text: str) -> str:
    prefix = path.strip("/")
    if not prefix:
        return DEFAULT_PREFIX
    if len(prefix) > PREFIX_MAX_BYTES or not is_key(prefix):
        raise ConfigError(
            f"store {text!r}: prefix {prefix!r} must be up to {PREFIX_MAX_BYTES} printable ASCII "
            "characters in parts separated by single slashes"
        )
    return prefix


def _options(kind: str, query: str, text: str) -> Mapping[str, Path | str | bool]:
    known = OPTIONS[kind]
    found: dict[str, Path | str | bool] = {}
    for part in filter(None, query.split("&")):
        # Not `parse_qsl`, for which a plus is a space, as forms have it and URLs do not.
        name, _, value = map(unquote, part.partition("="))
        where = f"store {_public(text)!r}: option {name}"
        if name not in known:
            near = CREDENTIALS[kind] if name in SECRETS else suggestion(name, sorted(known))
            raise ConfigError(f"{where} is not known; {near}")
        field = name.replace("-", "_")
        if field in found or not value:
            raise ConfigError(f"{where} must be given once, with a value")
        found[field] = _option(name, value, where)
    if ("cert" in found) != ("key" in found):
        raise ConfigError(f"store {text!r}: a client certificate needs both cert and key")
    if "user" in known and ("user" in found) != ("password_file" in found):
        raise ConfigError(f"store {text!r}: a password needs both user and password-file")
    if found.keys() & {"ca", "cert"} and not found.setdefault("tls", True):
        raise ConfigError(f"store {text!r}: tls=false contradicts the certificates given")
    return found


def _option(name: str, value: str, where: str) -> Path | str | bool:
    if name == "user":
        return value
    if name == "tls":
        if value not in {"true", "false"}:
            raise ConfigError(f"{where} is {value}: must be true or false")
        return value == "true"
    if not value.startswith("/"):
        raise ConfigError(f"{where} is {value}: must be an absolute path")
    return Path(value)


def _examples() -> str:
    return f"use {', '.join(EXAMPLES[kind] for kind in ('sqlite', 'etcd', 'consul', 'zk'))}"


def _public(text: str) -> str:
    """Leaves out what a user may have taken for the place of a password."""
    scheme, slashes, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    _, at, hosts = authority.rpartition("@")
    location = f"***@{hosts}" if at else authority
    return f"{scheme}{slashes}{location}{slash}{path}".partition("?")[0]
