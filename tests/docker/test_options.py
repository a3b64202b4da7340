"""Every option of `docker network create` and `docker run` that concerns an overlay."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.docker.hosts import IMAGE, DockerWorld, create, gone, pings, resolves, run, shown
from tests.netns.world import eventually

pytestmark = pytest.mark.docker


@pytest.fixture(autouse=True)
def clean(engines: DockerWorld) -> Iterator[None]:
    """Leaves no container and no network behind, and proves it."""
    yield
    for host in engines.hosts:
        if every := host.docker("ps", "-aq").split():
            host.docker("rm", "-f", *every)
    assert engines[1].cli("endpoint", "ls", "-q") == ""
    names = set(engines[1].networks()) | set(engines[2].networks())
    for name in names:
        engines[1].docker_try("network", "rm", name)
    for host in engines.hosts:
        for name in names:
            gone(host, name)


def test_subnets_gateways_ranges_and_spared_addresses(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(
        host1,
        "wide",
        *("--subnet", "10.88.0.0/16", "--gateway", "10.88.0.254", "--ip-range", "10.88.5.0/29"),
        *("--aux-address", "r=10.88.5.1", "--subnet", "10.89.0.0/24", "--label", "l=m"),
        *("--ip-range", "10.89.0.128/25", "--aux-address", "s=10.89.0.5"),
    )
    copy = shown(host2, "wide")
    assert copy["IPAM"]["Config"] == [
        {
            "Subnet": "10.88.0.0/16",
            "IPRange": "10.88.5.0/29",
            "Gateway": "10.88.0.254",
            "AuxiliaryAddresses": {"r": "10.88.5.1"},
        },
        {
            "Subnet": "10.89.0.0/24",
            "IPRange": "10.89.0.128/25",
            "Gateway": "10.89.0.1",
            "AuxiliaryAddresses": {"s": "10.89.0.5"},
        },
    ]
    assert copy["Labels"] == {"l": "m"}
    # Docker's command line sends subnets in any order, a copy has them sorted; the first counts.
    run(host2, "w1", "--network", "wide")
    run(host1, "w2", "--network", "wide", "--ip", "10.89.0.7")
    first = host2.inside("w1", "ip", "-json", "addr", "show", "eth0")
    assert json.loads(first)[0]["addr_info"][0]["local"] in {"10.88.5.0", "10.88.5.2"}
    assert pings(host2, "w1", "10.89.0.7")
    for spared in ("10.88.5.1", "10.89.0.5"):
        said = host1.docker_refused("run", "--rm", "--network", "wide", "--ip", spared, "busybox")
        assert f"{spared} is an aux address" in said


def test_dual_stack_crosses_hosts(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "six", "--ipv6", "--subnet", "10.60.0.0/24", "--subnet", "fd60::/64")
    assert shown(host2, "six")["EnableIPv6"]
    run(host1, "s1", "--network", "six", "--ip6", "fd60::77")
    run(host2, "s2", "--network", "six")
    assert pings(host2, "s2", "fd60::77", "-6")
    assert pings(host2, "s2", "s1", "-4")
    said = host2.docker_refused("run", "-d", "--network", "six", "--ip6", "fd60::77", "busybox")
    assert "address fd60::77 is taken in network six by endpoint s1 on host h1" in said


def test_ipv6_subnet_without_ipv6_is_ignored_as_docker_does(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "nosix", "--subnet", "10.57.0.0/24", "--subnet", "fd57::/64")
    copy = shown(host2, "nosix")
    assert not copy["EnableIPv6"]
    assert [config["Subnet"] for config in copy["IPAM"]["Config"]] == ["10.57.0.0/24"]


def test_addresses_begin_anew_in_each_network(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    for _ in range(2):
        create(host1, "anew", "--subnet", "10.56.0.0/24")
        run(host1, "a1", "--network", "anew", "--ip", "10.56.0.9")
        run(host1, "a2", "--network", "anew")
        found = host1.docker("exec", "a2", "ip", "addr", "show", "eth0")
        assert "inet 10.56.0.2/24" in found
        host1.docker("rm", "-f", "a1", "a2")
        host1.docker("network", "rm", "anew")
        gone(host2, "anew")


def test_static_addresses_and_macs_are_refused_twice_across_hosts(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "fixed", "--subnet", "10.61.0.0/24")
    shown(host2, "fixed")
    run(
        host1,
        "f1",
        "--network",
        "fixed",
        "--ip",
        "10.61.0.50",
        "--mac-address",
        "02:aa:bb:cc:dd:ee",
    )
    assert "02:aa:bb:cc:dd:ee" in host1.docker("exec", "f1", "ip", "link", "show", "eth0")
    said = host2.docker_refused("run", "-d", "--network", "fixed", "--ip", "10.61.0.50", "busybox")
    assert "address 10.61.0.50 is taken" in said
    assert "f1" in said
    mac = ("--mac-address", "02:aa:bb:cc:dd:ee")
    said = host2.docker_refused("run", "-d", "--network", "fixed", *mac, "busybox")
    assert "MAC 02:aa:bb:cc:dd:ee is taken" in said
    run(host2, "f2", "--network", "fixed")
    assert pings(host2, "f2", "10.61.0.50")
    host1.docker("rm", "-f", "f1")
    run(host2, "f3", "--network", "fixed", "--ip", "10.61.0.50")


def test_names_of_all_kinds_cross_hosts(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "names", "--subnet", "10.62.0.0/24")
    shown(host2, "names")
    run(host1, "n1", "--network", "names", "--network-alias", "web", "--hostname", "hosty")
    run(host1, "n2", "--network", "names", "--network-alias", "web")
    run(host2, "n3", "--network", "names")
    short = host1.docker("inspect", "-f", "{{.Id}}", "n1")[:12]
    for name in ("n1", "n1.names", "N1", short, "hosty"):
        assert resolves(host2, "n3", name) == {"10.62.0.2"}, name
    assert resolves(host2, "n3", "web") == {"10.62.0.2", "10.62.0.3"}
    run(host2, "n4", "--network", "names", "--network-alias", "web")
    everywhere = {"10.62.0.2", "10.62.0.3", "10.62.0.5"}
    for host, asker, name in ((host1, "n1", "web.pyvxlan"), (host2, "n3", "web.names.pyvxlan")):
        eventually(
            lambda host=host, asker=asker, name=name: resolves(host, asker, name) == everywhere,
            what=f"all holders have {name}",
        )
    assert "n1.names" in host2.docker("exec", "n3", "nslookup", "10.62.0.2")
    # The other name servers of daemon.json, which are not reached from here, are not asked.
    for name in ("nobody.pyvxlan", "10.62.0.99"):
        assert "NXDOMAIN" in host2.docker_try("exec", "n3", "nslookup", name).stdout
    host1.docker("rename", "n1", "other")
    assert resolves(host2, "n3", "other") == {"10.62.0.2"}
    said = host2.docker_refused("run", "-d", "--name", "other", "--network", "names", "busybox")
    assert "name other is taken" in said


def test_names_of_compose_and_of_other_runtimes_resolve_on_shared_networks_alone(
    engines: DockerWorld,
) -> None:
    host1, host2 = engines.hosts
    labels = {"com.docker.compose.network": "default", "com.docker.compose.project": "proj"}
    ipam = {"Driver": "pyvxlan", "Options": None, "Config": [{"Subnet": "10.69.0.0/24"}]}
    network = {"Name": "proj_default", "CheckDuplicate": True, "Driver": "pyvxlan", "IPAM": ipam}
    host1.api("POST", "/networks/create", {**network, "Options": None, "Labels": labels})
    create(host1, "apart", "--subnet", "10.59.0.0/24")
    copy = shown(host2, "proj_default")
    assert copy["Labels"] == labels
    assert not copy["IPAM"]["Options"], "compose would refuse to use the network"
    attached = {"IPAMConfig": {}, "Aliases": ["proj-web-1", "web"], "DriverOpts": None}
    web = {
        "Image": IMAGE,
        "Tty": True,
        "HostConfig": {"NetworkMode": "proj_default"},
        "NetworkingConfig": {"EndpointsConfig": {"proj_default": attached}},
    }
    host1.api("POST", "/containers/create?name=proj-web-1", web)
    host1.api("POST", "/containers/proj-web-1/start")
    run(host1, "proj_db_1", "--network", "proj_default", "--network-alias", "db")
    run(host1, "elsewhere", "--network", "apart")
    run(host2, "asker", "--network", "proj_default")
    bare = host1.container()
    address = bare.attach("proj_default", "--name", "bare")["addresses"][0].partition("/")[0]
    for name in ("web", "proj-web-1", "proj-web-1.proj_default"):
        assert resolves(host2, "asker", name) == {"10.69.0.2"}, name
    for name in ("db", "proj_db_1"):
        assert resolves(host2, "asker", name) == {"10.69.0.3"}, name
    assert resolves(host2, "asker", "bare") == {address}
    assert pings(host2, "asker", "bare")
    assert bare.ping("10.69.0.2") == 3
    assert "10.69.0.2" in bare.run("busybox", "nslookup", "web", "127.0.0.11")
    apart = ("nslookup", "-timeout=1", "-retry=1", "elsewhere.apart")
    assert "10.59." not in host2.docker_try("exec", "asker", *apart).stdout
    bare.detach()


def test_links_lead_to_other_hosts(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "linked", "--subnet", "10.54.0.0/24")
    shown(host2, "linked")
    run(host1, "l1", "--network", "linked")
    run(host2, "l2", "--network", "linked", "--link", "l1:database")
    run(host2, "l3", "--network", "linked")
    for name in ("database", "database.linked"):
        assert resolves(host2, "l2", name) == {"10.54.0.2"}, name
    host2.stop()
    host2.start()
    assert pings(host2, "l2", "database")
    assert "10.54.0.2" not in host2.docker_try("exec", "l3", "nslookup", "database.pyvxlan").stdout


def test_why_follows_frames_between_containers(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "whys", "--subnet", "10.58.0.0/24")
    shown(host2, "whys")
    run(host1, "w1", "--network", "whys")
    run(host2, "w2", "--network", "whys")
    short = host1.docker("inspect", "-f", "{{.Id}}", "w1")[:12]
    for host, a in ((host1, "w1"), (host2, short)):
        assert "ok: w1 reaches w2 at 10.58.0.3" in host.cli("why", a, "w2")
    bare = host2.container()
    bare.attach("whys", "--name", "bare")
    assert "ok: bare reaches w1" in host1.cli("why", "bare", "w1")
    bare.detach()
    host2.inside("w2", "ip", "link", "set", "eth0", "down")
    said = host1.cli_try("why", "w1", "w2")
    assert said.returncode == 1
    assert "not reached: eth0 in w2 is down" in said.stdout


def test_labels_are_any_text(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    labels = {"lines": "a\n\tb", "": "no key", "none": "", "quoted": """it's "so" = ☃"""}
    ipam = {"Driver": "pyvxlan"}
    network = {"Name": "labelled", "Driver": "pyvxlan", "IPAM": ipam, "Labels": labels}
    host1.api("POST", "/networks/create", network)
    assert shown(host2, "labelled")["Labels"] == labels
    (ours,) = json.loads(host2.cli("network", "inspect", "labelled"))
    assert ours["labels"] == labels


def test_networks_have_any_name_that_docker_finds_them_by(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    for name in ("n" * 110, "-dash", "ünï ☃", '"%2F#?'):
        create(host1, name, "--")
        shown(host2, name)
        run(host1, "c1", "--network", name)
        run(host2, "c2", "--network", name)
        assert pings(host2, "c2", "c1"), name
        host1.docker("rm", "-f", "c1")
        host2.docker("rm", "-f", "c2")
        host2.docker("network", "rm", host2.networks()[name]["Id"])
        gone(host1, name)


def test_attachable_network_is_so_on_the_other_host(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "loose", "--attachable")
    create(host1, "plain")
    assert shown(host2, "loose")["Attachable"]
    assert not shown(host2, "plain")["Attachable"]


def test_internal_network_has_names_and_no_way_out(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "inner", "--internal", "--subnet", "10.63.0.0/24")
    assert shown(host2, "inner")["Internal"]
    run(host1, "i1", "--network", "inner", "--network-alias", "ali", "--hostname", "hosty")
    run(host2, "i2", "--network", "inner")
    short = host1.docker("inspect", "-f", "{{.Id}}", "i1")[:12]
    for name in ("i1", "i1.inner", "ali", "hosty", short):
        assert resolves(host2, "i2", name) == {"10.63.0.2"}, name
    assert "i1.inner" in host2.docker("exec", "i2", "nslookup", "10.63.0.2")
    assert pings(host2, "i2", "i1")
    routes = host2.docker("exec", "i2", "ip", "route")
    assert "default" not in routes
    assert "eth1" not in routes


def test_ports_are_published_by_the_containers_host(engines: DockerWorld) -> None:
    host1 = engines[1]
    create(host1, "ports", "--subnet", "10.64.0.0/24")
    host1.docker(
        *("run", "-d", "--name", "p1", "--network", "ports", "-p", "8080:80", "busybox"),
        *("sh", "-c", "mkdir w; echo hello > w/a; httpd -f -p 80 -h w"),
    )
    assert "8080" in host1.docker("port", "p1")
    said = eventually(
        lambda: host1.run("busybox", "wget", "-qO-", "http://127.0.0.1:8080/a", check=False).stdout,
        what="the port answers",
    )
    assert said == "hello\n"


def test_running_container_moves_among_overlays(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "one", "--subnet", "10.65.0.0/24")
    create(host2, "two", "--subnet", "10.66.0.0/24")
    shown(host2, "one")
    shown(host1, "two")
    run(host1, "m1", "--network", "one")
    run(host2, "m2", "--network", "two")
    host1.docker("network", "connect", "--alias", "guest", "two", "m1")
    assert pings(host1, "m1", "m2")
    assert resolves(host2, "m2", "guest") == {"10.66.0.3"}
    host1.docker("network", "disconnect", "one", "m1")
    assert pings(host1, "m1", "m2"), "names are reached through the network that is left"
    host1.docker("network", "disconnect", "two", "m1")
    assert not pings(host2, "m2", "10.66.0.3", tries=1)


def test_options_of_the_driver(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "small", "--opt", "com.docker.network.driver.mtu=1400", "--opt", "vni=4711")
    assert shown(host2, "small")["Options"]["vni"] == "4711"
    run(host2, "o1", "--network", "small")
    assert "mtu 1350" in host2.docker("exec", "o1", "ip", "link", "show", "eth0")
    for option, reason in (
        ("vni=4711", "VNI 4711 is taken by network small"),
        ("encrypted", "option 'encrypted' is unknown"),
        ("com.docker.network.driver.mtu=9000", "above 1450"),
    ):
        said = host1.docker_refused(
            *("network", "create", "-d", "pyvxlan", "--ipam-driver", "pyvxlan"),
            *("--opt", option, "bad"),
        )
        assert reason in said
    assert "bad" not in host1.networks()
    taken = host1.networks()["small"]["IPAM"]["Config"][0]["Subnet"]
    said = host2.docker_refused(
        *("network", "create", "-d", "pyvxlan", "--ipam-driver", "pyvxlan"),
        *("--subnet", taken, "bad"),
    )
    assert "small" in said


def test_prune_spares_what_other_hosts_use(engines: DockerWorld) -> None:
    host1, host2 = engines.hosts
    create(host1, "used", "--subnet", "10.67.0.0/24")
    create(host1, "unused", "--subnet", "10.68.0.0/24")
    shown(host2, "used")
    shown(host2, "unused")
    run(host1, "u1", "--network", "used")
    host2.docker("network", "prune", "-f")
    gone(host1, "unused")
    assert "used" in host1.networks()
    assert "used" not in host2.networks(), "a removal by hand is not fought over"
    again = create(host2, "used", "--subnet", "10.67.0.0/24")
    assert shown(host2, "used")["Id"] == again
    run(host2, "u2", "--network", "used")
    assert pings(host2, "u2", "u1")
