"""Docker's overlay tutorial on two plain Engines, step by step."""

from __future__ import annotations

import re

import pytest

from tests.docker.hosts import DockerWorld, create, gone, shown

pytestmark = pytest.mark.docker


def test_tutorial_step_by_step(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    network_id = create(host1, "ov_net1")
    assert re.fullmatch(r"[0-9a-f]{64}", network_id)
    assert network_id == host1.docker("network", "inspect", "-f", "{{.Id}}", "ov_net1")
    shown(host2, "ov_net1")
    listed = host2.docker("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}")
    assert "ov_net1 pyvxlan local" in listed.splitlines()

    host1.docker("run", "-itd", "--name", "bbox1", "--network", "ov_net1", "busybox")
    links = host1.docker("exec", "bbox1", "ip", "a")
    overlay, gateway = re.findall(r"\d+: eth\d.*?(?=\n\d+: |\Z)", links, re.DOTALL)
    assert "eth0@" in overlay
    assert "mtu 1450" in overlay
    assert "link/ether 02:42:0a:00:00:02" in overlay
    assert "inet 10.0.0.2/24" in overlay
    assert "eth1@" in gateway
    assert "mtu 1500" in gateway
    assert "inet 172.18.0.2/16" in gateway
    routes = host1.docker("exec", "bbox1", "ip", "route").splitlines()
    assert routes[0].strip() == "default via 172.18.0.1 dev eth1"
    assert any(route.startswith("10.0.0.0/24 dev eth0") for route in routes)
    resolv_conf = host1.docker("exec", "bbox1", "cat", "/etc/resolv.conf")
    assert "nameserver 127.0.0.11" in resolv_conf

    host2.docker("run", "-itd", "--name", "bbox2", "--network", "ov_net1", "busybox")
    answered = host2.docker("exec", "bbox2", "ping", "-c", "3", "bbox1")
    assert "PING bbox1 (10.0.0.2)" in answered
    assert "3 packets received" in answered
    assert "3 packets received" in host1.docker("exec", "bbox1", "ping", "-c", "3", "bbox2")
    # The overlay's gateway address answers on every host.
    assert "1 packets received" in host2.docker("exec", "bbox2", "ping", "-c", "1", "10.0.0.1")

    for host, name in ((host1, "bbox1"), (host2, "bbox2")):
        host.docker("rm", "-f", name)
    assert host1.cli("endpoint", "ls", "-q") == ""
    host2.docker("network", "rm", "ov_net1")
    gone(host1, "ov_net1")
    assert host1.cli("network", "ls", "-q") == ""


def test_network_without_our_addresses_is_refused_with_the_remedy(engines: DockerWorld) -> None:
    said = engines[1].docker_refused("network", "create", "-d", "pyvxlan", "plain")
    assert "add --ipam-driver pyvxlan" in said
    assert "plain" not in engines[1].networks()


def test_network_of_the_command_line_appears_in_docker_everywhere(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    host2.cli("network", "create", "byhand", "--label", "a=b", "--subnet", "10.77.0.0/24")
    for host in engines.hosts:
        copy = shown(host, "byhand")
        assert copy["Labels"] == {"a": "b"}
        assert copy["IPAM"]["Config"] == [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}]
    host1.cli("network", "rm", "byhand")
    for host in engines.hosts:
        gone(host, "byhand")
