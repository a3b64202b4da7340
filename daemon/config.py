"""Settings of the daemon: defaults < configuration file < environment < flags.

One name per setting, everywhere: `run_dir` in the file, `PYVXLAN_RUN_DIR` in the environment,
`--run-dir` on the command line. A name or a value that can't be is an error that says what was
meant. The command line client reads `run_dir` alone, and so starts whatever else is wrong. All of
it is one module, since a setting's name, type, text and check change together.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import TypeAlias

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.model import DEFAULT_UDP_PORT, KERNEL_UDP_PORT, MTU_MIN_BYTES

DEFAULT_PATH = Path("/etc/pyvxlan/config.toml")
ENVIRONMENT_PREFIX = "PYVXLAN_"
LOG_LEVELS = ("debug", "info", "warning", "error")
DOCKER_PLUGIN = Path("/run/docker/plugins/pyvxlan.sock")
"""One of the places in which Docker looks for plug-ins; the file's name is the driver's."""
TAP_OFFLOADS = ("csum", "tso4", "tso6", "tso_ecn", "uso4", "uso6")
"""What the kernel may leave to the forwarder when a container sends."""
OFFLOADS = (*TAP_OFFLOADS, "segment", "gro")
"""Beside those of a port: the kernel cuts what is sent to a VTEP, and joins what comes from one."""

Value: TypeAlias = str | int | float | bool | Path | tuple[str, ...] | None


def default_workers() -> int:
    """Two threads carry what most hosts send; more are worth it on big machines only."""
    return min(2, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. docs/config.md tells what each is for."""

    run_dir: Path = Path("/run/pyvxlan")
    state_dir: Path = Path("/var/lib/pyvxlan")
    store: str = "sqlite:////var/lib/pyvxlan/store.db"
    host_name: str | None = None
    advertise: str | None = None
    port: int = DEFAULT_UDP_PORT
    kernel_port: int = KERNEL_UDP_PORT
    peer_port: int = 9473
    workers: int = default_workers()
    metrics_address: str = "127.0.0.1:9472"
    metrics_cert: Path | None = None
    metrics_key: Path | None = None
    metrics_client_ca: Path | None = None
    web_address: str = "127.0.0.1:9474"
    web_names: tuple[str, ...] = ()
    gateway_subnet: str = "172.18.0.0/16"
    log_level: str = "info"
    forwarder_user: str = "nobody"
    mtu_bytes: int | None = None
    pools: tuple[str, ...] = ("10.0.0.0/8:24",)
    resolvers: tuple[str, ...] = ()
    outer_checksum: bool = True
    no_offload: tuple[str, ...] = ()
    probe_interval_s: float = 1.0
    reconcile_interval_s: float = 3.0
    plugin_socket: str = "auto"
    docker_socket: Path = Path("/run/docker.sock")
    names_address: str = "169.254.53.53"

    @property
    def api_socket(self) -> Path:
        """Where the API listens."""
        return self.run_dir / "api.sock"

    @property
    def plugin_path(self) -> Path | None:
        """Where Docker finds the plug-in, or None if this daemon is none of Docker's."""
        if self.plugin_socket == "auto":
            return DOCKER_PLUGIN if self.run_dir == Path("/run/pyvxlan") else None
        return Path(self.plugin_socket) if self.plugin_socket else None

    @property
    def metrics_endpoint(self) -> tuple[str, int] | None:
        """Host and port of the metrics, or None if they are off."""
        return _split_endpoint(self.metrics_address) if self.metrics_address else None

    @property
    def web_endpoint(self) -> tuple[str, int] | None:
        """Host and port of the web page, or None if it is off."""
        return _split_endpoint(self.web_address) if self.web_address else None


SETTINGS: Mapping[str, str] = {
    "run_dir": "directory of sockets, namespaces and the forwarder's log",
    "state_dir": "directory of what must survive a reboot",
    "store": "URL of the key-value store that all hosts share",
    "host_name": "name of this host among the others; the machine's own if left out",
    "advertise": "underlay address, or the interface that holds it; found by itself if left out",
    "port": "UDP port of the underlay, the same on all hosts",
    "kernel_port": "UDP port of networks with datapath=kernel, the same on all hosts",
    "peer_port": "TCP port, on the underlay address, at which other hosts' daemons may ask this "
    "one; 0 turns it off",
    "workers": "threads of the forwarder",
    "metrics_address": 'where Prometheus reads, "host:port"; "" turns it off',
    "metrics_cert": "certificate in PEM form: metrics and web page by https",
    "metrics_key": "its private key",
    "metrics_client_ca": "authority whose certificates may read metrics and web page",
    "web_address": 'where the web page is, "host:port"; "" turns it off',
    "web_names": "names under which browsers may ask for it, besides localhost and the host's own",
    "gateway_subnet": "subnet of the bridge that leads containers out of the overlay",
    "log_level": f"one of {', '.join(LOG_LEVELS)}",
    "forwarder_user": "user that the forwarder becomes",
    "mtu_bytes": "MTU of the underlay; the interface's own if left out",
    "pools": 'where subnets of new networks come from, each "CIDR:prefix length"',
    "resolvers": "DNS servers for all other names; the host's own if left out",
    "outer_checksum": "whether outer UDP headers get a checksum",
    "no_offload": f"offloads of the kernel not to use, of {', '.join(OFFLOADS)}; or all",
    "probe_interval_s": "seconds between probes of the tunnel to another host; 0 for none",
    "reconcile_interval_s": "seconds between two comparisons of everything with what should be",
    "plugin_socket": 'where Docker finds the plug-in; "auto": the usual place, if run_dir is, too; '
    '"" for nowhere',
    "docker_socket": "Docker's API socket",
    "names_address": "address at which Docker's containers ask for names",
}
"""Every setting with what it is, in the order of `Settings`."""

KINDS: Mapping[str, str] = {
    "port": "integer",
    "kernel_port": "integer",
    "peer_port": "integer",
    "workers": "integer",
    "mtu_bytes": "integer",
    "web_names": "list of strings",
    "pools": "list of strings",
    "resolvers": "list of strings",
    "outer_checksum": "true or false",
    "no_offload": "list of strings",
    "probe_interval_s": "number",
    "reconcile_interval_s": "number",
}
"""The type of each setting that is no string, in the words of error messages."""


def load(
    overrides: Mapping[str, str], environ: Mapping[str, str], path: Path | None = None
) -> Settings:
    """Gives the effective settings.

    Args:
        overrides: Flags that were given, by setting, as text.
        environ: The environment; only `PYVXLAN_*` is looked at.
        path: The configuration file, which must exist; None for the default one, which need not.

    Raises:
        ConfigError: A file can't be read, or a name or value is not acceptable.
    """
    return load_with_origins(overrides, environ, path)[0]


def load_with_origins(
    overrides: Mapping[str, str], environ: Mapping[str, str], path: Path | None = None
) -> tuple[Settings, Mapping[str, str]]:
    """Gives what `load` does, and where each setting came from."""
    if path is None and (named := environ.get("PYVXLAN_CONFIG")):
        path = Path(named)
    values: dict[str, Value] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    layers = (
        (_read_file(path), str(path or DEFAULT_PATH)),
        (_read_environment(environ), "environment"),
        ({name: _from_text(name, text, flag(name)) for name, text in overrides.items()}, "flag"),
    )
    for layer, origin in layers:
        for name, value in layer.items():
            where = {"environment": variable(name), "flag": flag(name)}.get(
                origin, f"{origin}: {name}"
            )
            values[name] = _checked(name, value, where)
            origins[name] = origin
    settings = Settings(**values)  # type: ignore[arg-type]
    if settings.kernel_port == settings.port:
        raise ConfigError(
            f"kernel_port = {settings.kernel_port}: must differ from port, since the kernel and "
            "the forwarder can't both listen there; choose another, the same on all hosts"
        )
    return settings, origins


def run_dir(given: Path | None, environ: Mapping[str, str]) -> Path:
    """Finds the run directory for a client, which other settings must not stop."""
    if given is not None:
        return given
    if text := environ.get("PYVXLAN_RUN_DIR"):
        return Path(text)
    try:
        stored = _parse_file(Path(environ.get("PYVXLAN_CONFIG", DEFAULT_PATH))).get("run_dir")
    except (OSError, ConfigError):
        stored = None
    return Path(stored) if isinstance(stored, str) and stored else Settings().run_dir


def describe(settings: Settings, origins: Mapping[str, str]) -> str:
    """Prints settings as a configuration file that says where each line came from."""
    lines = []
    for field in fields(settings):
        value: Value = getattr(settings, field.name)
        line = f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}"
        lines.append(f"{line:<54}# {origins[field.name]}")
    return "\n".join(lines) + "\n"


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The environment's name of a setting."""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def suggestion(word: str, known: list[str]) -> str:
    """Gives `; did you mean X?` if a known word is near, else the list of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _read_file(path: Path | None) -> Mapping[str, Value]:
    try:
        document = _parse_file(path or DEFAULT_PATH)
    except FileNotFoundError as error:
        if path is None:
            return {}
        raise ConfigError(
            f"configuration file {path} does not exist: create it, or leave out --config"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"configuration file {path or DEFAULT_PATH} can't be read: {error.strerror}"
        ) from error
    layer: dict[str, Value] = {}
    for name, value in document.items():
        where = f"{path or DEFAULT_PATH}: {name}"
        if name not in SETTINGS:
            raise ConfigError(f"{where}: unknown key; {suggestion(name, list(SETTINGS))}")
        layer[name] = _from_toml(name, value, where)
    return layer


def _parse_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not valid TOML: {error}") from error


def _read_environment(environ: Mapping[str, str]) -> Mapping[str, Value]:
    layer: dict[str, Value] = {}
    known = [variable(name) for name in SETTINGS]
    for key, text in environ.items():
        if not key.startswith(ENVIRONMENT_PREFIX) or key == "PYVXLAN_CONFIG":
            continue
        if key not in known:
            raise ConfigError(f"environment: unknown variable {key}; {suggestion(key, known)}")
        name = key.removeprefix(ENVIRONMENT_PREFIX).lower()
        layer[name] = _from_text(name, text, key)
    return layer


def _from_toml(name: str, value: object, where: str) -> Value:
    kind = KINDS.get(name, "string")
    if isinstance(value, bool):
        if kind == "true or false":
            return value
    elif isinstance(value, str):
        if kind == "string":
            return value
    elif isinstance(value, int | float):
        if kind == "number" or (kind == "integer" and isinstance(value, int)):
            return value
    elif isinstance(value, list) and kind == "list of strings":
        texts = tuple(item for item in value if isinstance(item, str))
        if len(texts) == len(value):
            return texts
    raise ConfigError(
        f"{where} = {value!r}: must be {_article(kind)}, not {_article(_kind(value))}"
    )


def _from_text(name: str, text: str, where: str) -> Value:
    kind = KINDS.get(name, "string")
    converters: Mapping[str, Callable[[str], Value]] = {
        "string": str,
        "integer": int,
        "number": float,
        "true or false": _truth,
        "list of strings": lambda text: tuple(filter(None, re.split(r"[,\s]+", text))),
    }
    try:
        return converters[kind](text)
    except ValueError as error:
        raise ConfigError(f"{where} = {text!r}: must be {_article(kind)}") from error


def _truth(text: str) -> bool:
    words = {"true": True, "on": True, "yes": True, "1": True}
    words |= {"false": False, "off": False, "no": False, "0": False}
    try:
        return words[text.lower()]
    except KeyError as error:
        raise ValueError(text) from error


def _checked(name: str, value: Value, where: str) -> Value:
    """Gives the value in its final type, or raises ConfigError with what is wrong with it."""
    try:
        return _CHECKS[name](value)
    except ValueError as error:
        raise ConfigError(f"{where} = {_shown(value)}: {error}") from error


def _path(value: Value) -> Path:
    path = Path(str(value))
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _run_dir(value: Value) -> Path:
    path = _path(value)
    if len(os.fsencode(path)) > 80:
        raise ValueError("is too long: sockets below it must fit into 107 bytes, use at most 80")
    return path


def _plugin_socket(value: Value) -> str:
    if value in {"", "auto"}:
        return str(value)
    path = _path(value)
    if path.suffix != ".sock" or len(os.fsencode(path)) > 90:
        raise ValueError("must be a path of up to 90 bytes that ends in .sock, auto, or empty")
    return str(path)


def _names_address(value: Value) -> str:
    try:
        address = IPv4Address(str(value))
    except ValueError:
        raise ValueError("must be an IPv4 address such as 169.254.53.53") from None
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        raise ValueError("must be an address that containers can reach: no loopback or multicast")
    return str(address)


def _store(value: Value) -> str:
    text = str(value)
    if text.startswith("/"):
        raise ValueError(f"is a path: write sqlite://{text}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+-]*://.+", text):
        raise ValueError(
            "must be a URL such as sqlite:////var/lib/pyvxlan/store.db or "
            "etcd://host1:2379,host2:2379"
        )
    return text


def _host_name(value: Value) -> str | None:
    text = str(value)
    if text and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", text):
        raise ValueError("must be up to 63 of a-z A-Z 0-9 _ . - and a letter or digit first")
    return text or None


def _advertise(value: Value) -> str | None:
    text = str(value)
    if not text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[^\s/]{1,15}", text) or text[0].isdigit():
            surplus = ", without a prefix length" if "/" in text else ""
            raise ValueError(
                f"must be an address of this host, or the name of an interface{surplus}"
            ) from None
        return text
    refused = address.is_multicast or address.is_unspecified or address.is_loopback
    if refused or address.is_link_local:
        raise ValueError("must be an address that other hosts can reach")
    return str(address)


def _between(low: float, high: float, unit: str = "") -> Callable[[Value], Value]:
    def check(value: Value) -> Value:
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must lie between {low} and {high}{unit}")
        return value

    return check


def _probe_interval(value: Value) -> Value:
    if value != 0 and not (isinstance(value, int | float) and 0.1 <= value <= 3600):
        raise ValueError("must be 0, or lie between 0.1 and 3600 seconds")
    return value


def _endpoint(value: Value) -> str:
    if value:
        _split_endpoint(str(value))
    return str(value)


def _split_endpoint(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        if not colon or not port.isascii() or not 1 <= int(port) <= 65535:
            raise ValueError(port)
    except ValueError:
        raise ValueError("must be address:port such as 127.0.0.1:9472, or empty") from None
    return host, int(port)


def _web_names(value: Value) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    for name in value:
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,253}|[0-9a-fA-F:]{2,39}", name):
            raise ValueError(f"{name!r} must be a host name or an IP address, without a port")
    return value


def _gateway_subnet(value: Value) -> str:
    try:
        subnet = IPv4Network(str(value))
    except ValueError:
        raise ValueError("must be an IPv4 subnet such as 172.18.0.0/16") from None
    if not 8 <= subnet.prefixlen <= 29:
        raise ValueError("must have a prefix length between 8 and 29")
    return str(subnet)


def _log_level(value: Value) -> str:
    level = str(value).lower()
    if level not in LOG_LEVELS:
        raise ValueError(suggestion(level, list(LOG_LEVELS)))
    return level


def _user(value: Value) -> str:
    if not value:
        raise ValueError("must name a user such as nobody")
    return str(value)


def _pools(value: Value) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    if not value:
        raise ValueError("must hold at least one pool such as 10.0.0.0/8:24")
    for pool in value:
        base, _, size = pool.rpartition(":")
        try:
            network = ip_network(base)
            if not network.prefixlen <= int(size) <= network.max_prefixlen - 2:
                raise ValueError(size)
        except ValueError:
            raise ValueError(
                f"{pool!r} must be CIDR:prefix length, such as 10.0.0.0/8:24"
            ) from None
    return value


def _resolvers(value: Value) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    for resolver in value:
        try:
            ip_address(resolver)
        except ValueError:
            raise ValueError(f"{resolver!r} must be the IP address of a DNS server") from None
    return value


def _no_offload(value: Value) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    for name in value:
        if name not in {*OFFLOADS, "all"}:
            raise ValueError(
                f"{name!r} is no offload: there are {', '.join(OFFLOADS)}, and all for all of them"
            )
    return tuple(name for name in OFFLOADS if name in value or "all" in value)


_CHECKS: Mapping[str, Callable[[Value], Value]] = {
    "run_dir": _run_dir,
    "state_dir": _path,
    "store": _store,
    "host_name": _host_name,
    "advertise": _advertise,
    "port": _between(1, 65535),
    "kernel_port": _between(1, 65535),
    "peer_port": _between(0, 65535),
    "workers": _between(1, 64),
    "metrics_address": _endpoint,
    "metrics_cert": _path,
    "metrics_key": _path,
    "metrics_client_ca": _path,
    "web_address": _endpoint,
    "web_names": _web_names,
    "gateway_subnet": _gateway_subnet,
    "log_level": _log_level,
    "forwarder_user": _user,
    "mtu_bytes": _between(MTU_MIN_BYTES + 70, 65535, " bytes"),
    "pools": _pools,
    "resolvers": _resolvers,
    "outer_checksum": lambda value: value,
    "no_offload": _no_offload,
    "probe_interval_s": _probe_interval,
    "reconcile_interval_s": _between(0.1, 3600, " seconds"),
    "plugin_socket": _plugin_socket,
    "docker_socket": _path,
    "names_address": _names_address,
}


def _toml(value: Value) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case tuple():
            return f"[{', '.join(json.dumps(item) for item in value)}]"
    return json.dumps(str(value))


def _shown(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) else repr(value)


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "integer", float: "number", str: "string", dict: "table"}
    return kinds.get(type(value), "list")


def _article(kind: str) -> str:
    if kind == "true or false":
        return kind
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
