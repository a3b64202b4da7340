"""`pyvxlan docker` and `pyvxlan doctor`: this host's Docker, and what is wrong on this host.

They read and write this host's files themselves; what they need is imported when one of them runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvxlan.daemon import cli_format
from pyvxlan.daemon.apiclient import ClientError
from pyvxlan.daemon.cli_options import examples, format_option
from pyvxlan.daemon.errors import DaemonError

if TYPE_CHECKING:
    from pyvxlan.daemon.dockerconfig import Change
    from pyvxlan.daemon.hostview import Check, Host

FILE = click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE",
    help="Docker's configuration file, else the one that dockerd was started with, or "
    "/etc/docker/daemon.json.",
)  # fmt: skip
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Show what would change, and change nothing."
)


@click.group()
def docker() -> None:
    """Let this host's Docker ask the daemon for names.

    That takes one setting of Docker's, dns in daemon.json. Docker reads it when it starts.
    """


@docker.command("setup", epilog=examples("pyvxlan docker setup --dry-run\npyvxlan docker setup"))
@FILE
@DRY_RUN
@click.pass_context
def docker_setup(ctx: click.Context, /, *, file: Path | None, dry_run: bool) -> None:
    """Put the daemon's name server first in Docker's dns.

    All else in the file stays as it is. Servers that were there stay behind ours; if there were
    none, the host's own take their place, for when the daemon is down. Prints what changes.
    """
    from pyvxlan.daemon import dockerconfig  # noqa: PLC0415

    host = _host(ctx, file)
    address = host.settings.names_address
    given = host.dockerd.options("dns") if host.dockerd else []
    if given[:1] == [address]:
        click.echo(f"pyvxlan: dockerd is started with --dns {address}, that is enough", err=True)
    elif given:
        raise ClientError(
            f"dockerd is started with --dns {given[0]}, and does not start with dns in "
            f"{host.daemon_json} as well: put --dns {address} before it, or take it away"
        )
    else:
        _edit(host, dockerconfig.setup, dry_run=dry_run)


@docker.command("undo", epilog=examples("pyvxlan docker undo --dry-run\npyvxlan docker undo"))
@FILE
@DRY_RUN
@click.pass_context
def docker_undo(ctx: click.Context, /, *, file: Path | None, dry_run: bool) -> None:
    """Take back what setup did.

    A file that nobody touched since becomes what it was. Prints what changes.
    """
    from pyvxlan.daemon import dockerconfig  # noqa: PLC0415

    _edit(_host(ctx, file), dockerconfig.undo, dry_run=dry_run)


@docker.command("check", epilog=examples("pyvxlan docker check"))
@FILE
@format_option("table", "json")
@click.pass_context
def docker_check(ctx: click.Context, /, file: Path | None, kind: str) -> int:
    """Look whether Docker and the daemon can work together.

    Ends with 1 if there is an error; warnings do not count.
    """
    from pyvxlan.daemon.doctor import DOCKER_CHECKS  # noqa: PLC0415

    host = _host(ctx, file)
    if not host.docker_there:
        raise ClientError(
            f"there is no Docker here: nothing at {host.settings.docker_socket}, no "
            f"{host.daemon_json}, or this daemon has no plugin_socket"
        )
    return _report(host, DOCKER_CHECKS, kind)


@click.command(epilog=examples("pyvxlan doctor\npyvxlan doctor --format json | jq .[].text"))
@format_option("table", "json")
@click.pass_context
def doctor(ctx: click.Context, /, kind: str) -> int:
    """Look what is wrong on this host, and say what to do.

    Ends with 1 if there is an error; warnings do not count. It changes nothing.
    """
    from pyvxlan.daemon.doctor import CHECKS  # noqa: PLC0415

    return _report(_host(ctx, None), CHECKS, kind)


def _edit(host: Host, edit: Callable[..., Change], *, dry_run: bool) -> None:
    from pyvxlan.daemon.dockerconfig import RECORD  # noqa: PLC0415

    settings = host.settings
    record = settings.state_dir / RECORD
    try:
        change = edit(host.daemon_json, record, settings.names_address, dry_run=dry_run)
    except DaemonError as error:
        raise ClientError(str(error)) from error
    if diff := change.diff():
        click.echo(diff)
        if not dry_run:
            click.echo("pyvxlan: restart Docker now: systemctl restart docker", err=True)
    else:
        click.echo(f"pyvxlan: {change.path} is as it should be", err=True)


def _host(ctx: click.Context, /, file: Path | None) -> Host:
    from pyvxlan.daemon.config import load  # noqa: PLC0415
    from pyvxlan.daemon.hostview import Host  # noqa: PLC0415

    run_dir = ctx.find_root().params.get("run_dir")
    try:
        settings = load({} if run_dir is None else {"run_dir": str(run_dir)}, os.environ)
    except DaemonError as error:
        raise ClientError(str(error)) from error
    return Host(settings, file)


def _report(host: Host, checks: Sequence[Check], kind: str) -> int:
    from pyvxlan.daemon.doctor import examine  # noqa: PLC0415

    documents = [
        {"what": one.what, "level": one.level, "text": one.text} for one in examine(host, checks)
    ]
    if kind == "json":
        click.echo(cli_format.as_json(documents))
    else:
        click.echo(cli_format.findings_table(documents))
    return 1 if any(one["level"] == "error" for one in documents) else 0
