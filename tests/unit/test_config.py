"""Settings: layers, types, suggestions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pyvxlan import tap_offloads
from pyvxlan.daemon import config
from pyvxlan.daemon.config import (
    OFFLOADS,
    SETTINGS,
    TAP_OFFLOADS,
    Settings,
    describe,
    load,
    load_with_origins,
    run_dir,
)
from pyvxlan.daemon.errors import ConfigError


def written(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_hold_without_any_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyvxlan.daemon.config.DEFAULT_PATH", tmp_path / "none.toml")
    assert load({}, {}) == Settings()


def test_file_is_beaten_by_environment_and_that_by_flags(tmp_path: Path) -> None:
    path = written(tmp_path, 'port = 1001\nworkers = 3\nlog_level = "debug"\n')
    environ = {"PYVXLAN_PORT": "1002", "PYVXLAN_WORKERS": "4", "HOME": "/root"}
    settings, origins = load_with_origins({"port": "1003"}, environ, path)
    assert (settings.port, settings.workers, settings.log_level) == (1003, 4, "debug")
    assert origins["port"] == "flag"
    assert origins["workers"] == "environment"
    assert origins["log_level"] == str(path)
    assert origins["store"] == "default"


def test_environment_may_name_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "port = 1001\n")
    assert load({}, {"PYVXLAN_CONFIG": str(path)}).port == 1001


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 4790", ["prot", "did you mean port?"]),
        ("[daemon]\nport = 4790", ["daemon", "unknown key"]),
        ("port = '4790'", ["port", "4790", "an integer", "a string"]),
        ("port = true", ["port", "an integer", "true or false"]),
        ("port = 70000", ["port", "70000", "65535"]),
        ("workers = 0", ["workers", "0"]),
        ("outer_checksum = 1", ["outer_checksum", "true or false"]),
        ("pools = '10.0.0.0/8:24'", ["pools", "a list of strings"]),
        ("pools = ['10.0.0.0/8']", ["pools", "10.0.0.0/8", "10.0.0.0/8:24"]),
        ("pools = ['10.0.0.0/8:4']", ["10.0.0.0/8:4"]),
        ("pools = [1]", ["pools", "a list of strings"]),
        ("resolvers = ['dns.example']", ["resolvers", "dns.example", "IP address"]),
        ("no_offload = ['tso5']", ["no_offload", "'tso5'", *OFFLOADS, "all"]),
        ("gateway_subnet = '172.18.0.1/16'", ["172.18.0.1/16", "172.18.0.0/16"]),
        ("gateway_subnet = 'fd00::/64'", ["fd00::/64"]),
        ("gateway_subnet = '172.18.0.0/30'", ["172.18.0.0/30", "29"]),
        ("metrics_address = 'localhost:9472'", ["localhost:9472", "127.0.0.1:9472"]),
        ("metrics_address = '127.0.0.1'", ["127.0.0.1"]),
        ("web_address = 'localhost:80'", ["web_address", "localhost:80", "or empty"]),
        ("web_names = ['http://x']", ["web_names", "http://x", "host name"]),
        ("run_dir = 'run'", ["run", "absolute"]),
        (f"run_dir = '/{'x' * 90}'", ["run_dir", "80"]),
        ("store = '/var/lib/store.db'", ["/var/lib/store.db", "write sqlite:///var/lib/store.db"]),
        ("advertise = '224.0.0.1'", ["224.0.0.1"]),
        ("advertise = '10.0.0.x'", ["10.0.0.x"]),
        ("advertise = '10.0.0.1/24'", ["without a prefix length"]),
        ("advertise = 'fe80::1%eth0'", ["must be an address that other hosts can reach"]),
        ("log_level = 'debgu'", ["debgu", "did you mean debug?"]),
        ("host_name = 'a b'", ["host_name", "a b"]),
        ("forwarder_user = ''", ["forwarder_user"]),
        ("mtu_bytes = 500", ["mtu_bytes", "500"]),
        ("reconcile_interval_s = 0", ["reconcile_interval_s", "0"]),
        ("port = x\nworkers = 1", ["not valid TOML", "line 1"]),
    ],
)
def test_wrong_file_is_refused_with_the_value_and_the_remedy(
    tmp_path: Path, text: str, named: list[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load({}, {}, path)
    for word in [str(path), *named]:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("PYVXLAN_PROT", "1", "did you mean PYVXLAN_PORT?"),
        ("PYVXLAN_PORT", "many", "PYVXLAN_PORT = 'many'"),
        ("PYVXLAN_OUTER_CHECKSUM", "perhaps", "perhaps"),
        ("PYVXLAN_RESOLVERS", "1.1.1.1,x", "'x'"),
    ],
)
def test_wrong_environment_is_refused(variable: str, value: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({}, {variable: value})
    assert named in str(refused.value)


def test_wrong_flag_is_named_as_it_was_typed() -> None:
    with pytest.raises(ConfigError, match="--metrics-address"):
        load({"metrics_address": "nowhere"}, {})


def test_text_of_every_kind_is_understood() -> None:
    settings = load(
        {
            "outer_checksum": "off",
            "resolvers": "192.0.2.1, 2001:db8::1",
            "reconcile_interval_s": "0.5",
            "metrics_address": "[::1]:9000",
            "advertise": "eth0",
            "no_offload": "gro,csum,gro",
        },
        {"PYVXLAN_POOLS": "10.8.0.0/16:24 fd00::/48:64"},
    )
    assert settings.outer_checksum is False
    assert settings.resolvers == ("192.0.2.1", "2001:db8::1")
    assert settings.reconcile_interval_s == 0.5
    assert settings.metrics_endpoint == ("::1", 9000)
    assert settings.advertise == "eth0"
    assert settings.pools == ("10.8.0.0/16:24", "fd00::/48:64")
    assert settings.no_offload == ("csum", "gro")


def test_all_offloads_have_one_name_together() -> None:
    assert load({"no_offload": "all"}, {}).no_offload == OFFLOADS


def test_offloads_of_a_port_are_those_that_the_data_plane_knows() -> None:
    with pytest.raises(ValueError, match=f"there are {', '.join(TAP_OFFLOADS)}$"):
        tap_offloads(0, without=["tso5"])


def test_metrics_can_be_turned_off() -> None:
    assert load({"metrics_address": ""}, {}).metrics_endpoint is None


def test_missing_file_is_an_error_only_if_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        load({}, {}, tmp_path / "none.toml")


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load({}, {}, tmp_path)


def test_description_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    settings, origins = load_with_origins({"advertise": "198.18.0.1"}, {"PYVXLAN_WORKERS": "5"})
    text = describe(settings, origins)
    assert load({}, {}, written(tmp_path, text)) == settings
    certificates = {"metrics_cert", "metrics_key", "metrics_client_ca"}
    assert set(tomllib.loads(text)) == set(SETTINGS) - {"mtu_bytes", "host_name"} - certificates
    assert "# flag" in text
    assert "# environment" in text


def test_client_finds_the_run_directory_whatever_else_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, "run_dir = '/run/other'\nprot = 1\n")
    environ = {"PYVXLAN_CONFIG": str(path)}
    assert run_dir(None, environ) == Path("/run/other")
    assert run_dir(None, environ | {"PYVXLAN_RUN_DIR": "/run/env"}) == Path("/run/env")
    assert run_dir(Path("/run/flag"), environ | {"PYVXLAN_RUN_DIR": "/run/env"}) == Path(
        "/run/flag"
    )
    assert run_dir(None, {"PYVXLAN_CONFIG": str(tmp_path / "none")}) == Settings().run_dir


def test_example_file_shows_every_setting_with_its_default() -> None:
    text = Path(config.__file__).with_name("assets").joinpath("config.toml").read_text("utf-8")
    shown = "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line)
    stored = tomllib.loads(shown)
    assert set(stored) == set(SETTINGS)


def test_page_lists_every_setting() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "config.md").read_text("utf-8")
    assert [name for name in SETTINGS if f"\n| `{name}` |" not in page] == []
