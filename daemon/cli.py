"""The command line: a client of the daemon's API, nothing more.

`cli_store`, `cli_docker` and `cli_debug` look at more: the store, Docker's files, the host.

Only what a command needs is imported, since people and scripts start it often. Exit codes: 0 done,
1 refused or failed, 2 wrong usage, 3 no daemon; `run` and `exec` end as their command does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from pyvxlan.daemon import cli_format
from pyvxlan.daemon.apiclient import ClientError, RefusedError
from pyvxlan.daemon.cli_capture import capture, drops
from pyvxlan.daemon.cli_debug import debug
from pyvxlan.daemon.cli_docker import docker, doctor
from pyvxlan.daemon.cli_events import events
from pyvxlan.daemon.cli_options import (
    client_of,
    each,
    endpoint_options,
    examples,
    fail,
    format_option,
    given,
    listing,
    names_from,
    pairs,
    print_list,
)
from pyvxlan.daemon.cli_peers import peers
from pyvxlan.daemon.cli_store import store
from pyvxlan.daemon.cli_top import top
from pyvxlan.daemon.cli_why import why

COMMAND_ARGS = {"allow_interspersed_args": False}


def main() -> None:
    """Runs the command line and ends the process."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Runs one command; prints at most one line of error. Returns the exit code."""
    try:
        result = cli.main(list(args), prog_name="pyvxlan", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "pyvxlan"
        return fail(f"{error.format_message()} (see {path} --help)", 2)
    except click.Abort:
        return 130
    except ClientError as error:
        return fail(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output left; Python must not complain about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return result if isinstance(result, int) else 0


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        from importlib.metadata import version  # noqa: PLC0415

        click.echo(f"pyvxlan {version('pyvxlan')}")
        ctx.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("""
pyvxlan network create ov_net1
pyvxlan run --network ov_net1 --name bbox1 -- busybox sh
pyvxlan attach --network ov_net1 --name web my-namespace
pyvxlan endpoint ls
pyvxlan status
"""),
)
@click.option("--run-dir", type=click.Path(path_type=Path), metavar="DIR",
              help="Run directory of the daemon; also PYVXLAN_RUN_DIR.")  # fmt: skip
@click.option("--version", is_flag=True, is_eager=True, expose_value=False,
              callback=_print_version, help="Print the version.")  # fmt: skip
def cli(run_dir: Path | None) -> None:
    """Overlay networks between hosts.

    Talks to pyvxlan-daemon on this host; what it changes holds on all hosts.
    """


@cli.group()
def network() -> None:
    """Create, list, inspect and remove networks."""


@network.command(
    "create",
    epilog=examples("""
pyvxlan network create ov_net1
pyvxlan network create --ipv6 --label team=blue ov_dual
pyvxlan network create --subnet 10.9.0.0/24 --gateway 10.9.0.254 ov_nine
pyvxlan network create --subnet 10.9.1.0/24 --aux-address router=10.9.1.9 ov_spared
pyvxlan network create --internal --opt multicast=off ov_quiet
"""),
)
@click.argument("name")
@click.option("--subnet", "subnets", multiple=True, metavar="CIDR",
              help="Range of addresses, else the next free one. Repeat for several.")  # fmt: skip
@click.option("--gateway", "gateways", multiple=True, metavar="IP",
              help="Address of the bridge in its subnet, else the first.")  # fmt: skip
@click.option("--ip-range", "ip_ranges", multiple=True, metavar="CIDR",
              help="Part of its subnet to give addresses from.")  # fmt: skip
@click.option("--aux-address", "aux_addresses", multiple=True, metavar="NAME=IP", callback=pairs,
              help="Address that nobody gets. Repeat for several.")  # fmt: skip
@click.option("--ipv6", is_flag=True, help="Add an IPv6 subnet.")
@click.option("--mtu", type=int, metavar="BYTES", help="MTU inside, else what the underlay allows.")
@click.option("--vni", type=int, metavar="N", help="Number on the wire, else a free one.")
@click.option("--internal", is_flag=True, help="No way out: no gateway bridge, no default route.")
@click.option("-o", "--opt", "options", multiple=True, metavar="K=V", callback=pairs,
              help="multicast=on|off, flood-rate=FRAMES/S, datapath=kernel, vni=N, "
                   "mtu=BYTES.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="K=V", callback=pairs,
              help="Anything to remember with it.")  # fmt: skip
@format_option("id", "json")
@click.pass_context
def network_create(ctx: click.Context, /, kind: str, **spec: Any) -> None:
    """Create a network on all hosts. Prints its id."""
    doing = f"creating network {spec['name']}"
    created = client_of(ctx).post("networks", body=spec, doing=doing)
    click.echo(cli_format.as_json(created) if kind == "json" else created["id"])


@network.command(
    "ls", epilog=examples("pyvxlan network ls\npyvxlan network ls --format json | jq '.[].name'")
)
@listing
@click.pass_context
def network_ls(ctx: click.Context, /, **shown: Any) -> None:
    """List the networks of all hosts."""
    print_list(client_of(ctx).get("networks"), cli_format.network_table, **shown)


@network.command("inspect", epilog=examples("pyvxlan network inspect ov_net1"))
@click.argument("refs", nargs=-1, required=True, callback=given, metavar="NETWORK...",
                shell_complete=names_from("networks"))  # fmt: skip
@format_option("json")
@click.pass_context
def network_inspect(ctx: click.Context, /, refs: tuple[str, ...], kind: str) -> int:
    """Show all about networks, with their endpoints, as a JSON list."""
    return _inspect(ctx, "networks", refs)


@network.command("rm", epilog=examples("pyvxlan network rm ov_net1 ov_net2"))
@click.argument("refs", nargs=-1, required=True, callback=given, metavar="NETWORK...",
                shell_complete=names_from("networks"))  # fmt: skip
@click.pass_context
def network_rm(ctx: click.Context, /, refs: tuple[str, ...]) -> int:
    """Remove networks from all hosts. Prints their names.

    A network with endpoints is not removed.
    """
    client = client_of(ctx)

    def remove(ref: str) -> None:
        doing = f"removing network {ref}"
        click.echo(client.delete("networks", ref, doing=doing)["name"])

    return each(refs, remove)


@network.command("prune", epilog=examples("pyvxlan network prune --force"))
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def network_prune(ctx: click.Context, /, *, force: bool) -> None:
    """Remove all networks without endpoints. Prints their names."""
    if not force and sys.stdin.isatty():
        click.confirm("Remove every network without endpoints?", abort=True)
    doing = "removing unused networks"
    for removed in client_of(ctx).post("networks", "prune", body={}, doing=doing):
        click.echo(removed["name"])


@cli.group()
def endpoint() -> None:
    """List and inspect endpoints."""


@endpoint.command(
    "ls", epilog=examples("pyvxlan endpoint ls --network ov_net1\npyvxlan endpoint ls --local -q")
)
@click.option("--network", "network_ref", default="", metavar="NETWORK",
              shell_complete=names_from("networks"), help="Only of this network.")  # fmt: skip
@click.option("--local", is_flag=True, help="Only of this host.")
@listing
@click.pass_context
def endpoint_ls(ctx: click.Context, /, network_ref: str, *, local: bool, **shown: Any) -> None:
    """List the endpoints of all hosts."""
    found = client_of(ctx).get("endpoints", network=network_ref, local="true" if local else "")
    print_list(found, cli_format.endpoint_table, **shown)


@endpoint.command("inspect", epilog=examples("pyvxlan endpoint inspect bbox1"))
@click.argument("refs", nargs=-1, required=True, callback=given, metavar="ENDPOINT...",
                shell_complete=names_from("endpoints"))  # fmt: skip
@format_option("json")
@click.pass_context
def endpoint_inspect(ctx: click.Context, /, refs: tuple[str, ...], kind: str) -> int:
    """Show all about endpoints, by name, name.network or id, as a JSON list."""
    return _inspect(ctx, "endpoints", refs)


@cli.command(
    epilog=examples("""
pyvxlan attach --network ov_net1 blue              # ip netns add blue
pyvxlan attach --network ov_net1 /var/run/ns/blue  # any namespace file
pyvxlan attach --network ov_net1 --name db 4242    # while process 4242 lives
"""),
)
@click.option("--network", "network_ref", required=True, metavar="NETWORK",
              shell_complete=names_from("networks"), help="Name or id of the network.")  # fmt: skip
@endpoint_options
@click.option("--ifname", default="", metavar="NAME", help="Interface inside, else eth0, eth1, ...")
@format_option("id", "json")
@click.argument("sandbox", metavar="NAMESPACE")
@click.pass_context
def attach(ctx: click.Context, /, network_ref: str, kind: str, **spec: Any) -> None:
    """Attach a network namespace to a network. Prints the endpoint's id.

    NAMESPACE is a name (ip netns), a path, or the id of a process.
    """
    body = {"network": network_ref, **spec}
    made = client_of(ctx).post("endpoints", body=body, doing=f"attaching {spec['sandbox']}")
    click.echo(cli_format.as_json(made) if kind == "json" else made["id"])


@cli.command(
    epilog=examples("""
pyvxlan detach bbox1
pyvxlan detach --network ov_net1 blue     # a namespace, as given to attach
pyvxlan detach --kill bbox1               # ends its process too
"""),
)
@click.argument("refs", nargs=-1, required=True, callback=given, metavar="ENDPOINT|NAMESPACE...",
                shell_complete=names_from("endpoints"))  # fmt: skip
@click.option("--network", "network_ref", default="", metavar="NETWORK",
              shell_complete=names_from("networks"), help="Only from this network.")  # fmt: skip
@click.option("--force", is_flag=True, help="Also an endpoint of a host that is down.")
@click.option("--kill", is_flag=True, help="End the process that the endpoint belongs to.")
@click.pass_context
def detach(
    ctx: click.Context,
    /,
    refs: tuple[str, ...],
    network_ref: str,
    *,
    force: bool,
    kill: bool,
) -> int:
    """Detach endpoints or namespaces. Prints the ids of the endpoints."""
    client = client_of(ctx)

    def remove(ref: str) -> None:
        if kill:
            _kill(client.get("endpoints", ref, local="true"))
        given = {"network": network_ref, "force": "true" if force else ""}
        try:
            removed = client.delete("endpoints", ref, doing=f"detaching {ref}", **given)
        except RefusedError as error:
            if not kill or error.status != 404:
                raise
            removed = []  # the daemon saw the process end and was faster
        for gone in removed:
            click.echo(gone["id"])

    return each(refs, remove)


@cli.command(
    "run",
    context_settings=COMMAND_ARGS,
    epilog=examples("""
pyvxlan run --network ov_net1 --name bbox1 -- busybox sh
pyvxlan run -d --network ov_net1 --name web --alias www -- busybox httpd -f
pyvxlan run --network ov_net1 --network ov_net2 -- ip addr
"""),
)
@click.option("--network", "network_refs", multiple=True, required=True, metavar="NETWORK",
              shell_complete=names_from("networks"), help="Repeat for several.")  # fmt: skip
@endpoint_options
@click.option("-d", "--detach", "detached", is_flag=True,
              help="Leave it running and print the endpoint's id.")  # fmt: skip
@click.option("--log-file", type=click.Path(path_type=Path), metavar="FILE",
              help="With -d: where output goes, else nowhere.")  # fmt: skip
@click.option("--rm", is_flag=True, expose_value=False, help="Always so: nothing is left behind.")
@click.option("-i", "--interactive", is_flag=True, expose_value=False, help="Always so.")
@click.option("-t", "--tty", is_flag=True, expose_value=False, help="Always so on a terminal.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.pass_context
def run_(ctx: click.Context, /, command: tuple[str, ...], **spec: Any) -> int:
    """Run a command in a new container.

    It has its own interfaces, processes, mounts and host name, and the files of the host. It ends
    with its command, whose exit code is passed on.
    """
    from pyvxlan.daemon import cli_run  # noqa: PLC0415

    return cli_run.run(client_of(ctx), _without_dashes(command), **spec)


@cli.command(
    "exec",
    context_settings=COMMAND_ARGS,
    epilog=examples("pyvxlan exec bbox1 -- ip addr\npyvxlan exec bbox1 -- ping -c 3 bbox2"),
)
@click.option("-i", "--interactive", is_flag=True, expose_value=False, help="Always so.")
@click.option("-t", "--tty", is_flag=True, expose_value=False, help="Always so on a terminal.")
@click.argument("ref", callback=given, metavar="ENDPOINT", shell_complete=names_from("endpoints"))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.pass_context
def exec_(ctx: click.Context, /, ref: str, command: tuple[str, ...]) -> int:
    """Run a command inside an endpoint of this host.

    Its exit code is passed on.
    """
    from pyvxlan.daemon import cli_run  # noqa: PLC0415

    words = _without_dashes(command)
    return cli_run.execute(client_of(ctx).get("endpoints", ref, local="true"), words)


@cli.group()
def node() -> None:
    """List the hosts."""


@node.command("ls", epilog=examples("pyvxlan node ls"))
@listing
@click.pass_context
def node_ls(ctx: click.Context, /, **shown: Any) -> None:
    """List the hosts that take part; a star marks this one."""
    print_list(client_of(ctx).get("hosts"), cli_format.host_table, **shown)


@cli.command(epilog=examples("pyvxlan status\npyvxlan status --format json | jq .forwarder"))
@format_option("text", "json")
@click.pass_context
def status(ctx: click.Context, /, kind: str) -> None:
    """Show how this host is doing.

    Its daemon, store, forwarder, and the networks that it carries.
    """
    found = client_of(ctx).get("status")
    click.echo(cli_format.as_json(found) if kind == "json" else cli_format.status_text(found))


@cli.command(
    epilog=examples("""
pyvxlan completion bash > /etc/bash_completion.d/pyvxlan
pyvxlan completion zsh > "${fpath[1]}/_pyvxlan"
pyvxlan completion fish > ~/.config/fish/completions/pyvxlan.fish
"""),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "pyvxlan", "_PYVXLAN_COMPLETE").source())


for _command in (capture, debug, docker, doctor, drops, events, peers, store, top, why):
    cli.add_command(_command)


def _inspect(ctx: click.Context, /, kind: str, refs: Sequence[str]) -> int:
    client = client_of(ctx)
    found: list[Any] = []
    exit_code = each(refs, lambda ref: found.append(client.get(kind, ref)))
    if found:
        click.echo(cli_format.as_json(found))
    return exit_code


def _kill(document: Any) -> None:
    from pyvxlan.daemon import cli_run  # noqa: PLC0415

    cli_run.kill(document)


def _without_dashes(command: tuple[str, ...]) -> tuple[str, ...]:
    """Drops the `--` that may stand before a command."""
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("the command is missing after --")
    return words
