"""`pyvxlan store`: the commands that open a store themselves, with no daemon between.

They are the way in when no daemon can run. What they need is imported when one of them runs, so
that all others start as fast as before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvxlan.daemon import cli_format
from pyvxlan.daemon.apiclient import ApiClient, ClientError
from pyvxlan.daemon.cli_options import examples, format_option
from pyvxlan.daemon.errors import DaemonError

T = TypeVar("T")


@click.group()
def store() -> None:
    """Check, dump, restore and migrate the store itself.

    Without URL it is the store of this host's daemon: as the daemon says if it runs, else as the
    configuration file and the environment do.
    """


@store.command(
    "check",
    epilog=examples("""
pyvxlan store check
pyvxlan store check etcd://10.1.0.1:2379,10.1.0.2:2379,10.1.0.3:2379
pyvxlan store check --format json | jq '.findings[] | select(.level != "ok")'
"""),
)
@click.argument("url", required=False)
@format_option("table", "json")
@click.pass_context
def store_check(ctx: click.Context, /, url: str | None, kind: str) -> int:
    """Look whether the store serves, and whether its records fit each other.

    Ends with 1 if there is an error; warnings do not count. It writes nothing but one key that it
    takes away again.
    """
    from pyvxlan.daemon.upkeep.check import check  # noqa: PLC0415

    url = url or store_url(ctx)
    report = _run(lambda: check(url))
    document = report.document()
    if kind == "json":
        click.echo(cli_format.as_json(document))
    else:
        click.echo(cli_format.store_report(document))
    return 0 if report.good else 1


@store.command(
    "dump",
    epilog=examples("""
pyvxlan store dump -o store.dump
pyvxlan store dump | gzip > store-$(date +%F).gz
"""),
)
@click.argument("url", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("-"), metavar="FILE",
              help="Where to write, readable by its owner alone; else to stdout.")  # fmt: skip
@click.pass_context
def store_dump(ctx: click.Context, /, url: str | None, output: Path) -> None:
    """Write all that outlives a session to a file, as of one moment.

    Networks, hosts, endpoints, and who holds what. It holds no secret.
    """
    from pyvxlan.daemon.upkeep.dump import dump  # noqa: PLC0415

    url = url or store_url(ctx)
    _say(_run(lambda: dump(url, output, _say)))


@store.command(
    "restore",
    epilog=examples("""
pyvxlan store restore store.dump etcd://10.1.0.1:2379
pyvxlan store restore --replace store.dump
"""),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("url", required=False)
@click.option("--replace", is_flag=True,
              help="In place of what the store holds, with all daemons stopped.")  # fmt: skip
@click.pass_context
def store_restore(ctx: click.Context, /, file: Path, url: str | None, *, replace: bool) -> None:
    """Fill an empty store from a dump.

    The whole file is checked before anything is written. If it breaks off, no daemon uses the store
    until the same command has finished it.
    """
    from pyvxlan.daemon.upkeep.dump import load  # noqa: PLC0415
    from pyvxlan.daemon.upkeep.restore import restore  # noqa: PLC0415

    url = url or store_url(ctx)
    _say(_run(lambda: restore(url, load(file), replace=replace, say=_say)))


@store.command(
    "migrate",
    epilog=examples("""
pyvxlan store migrate sqlite:////var/lib/pyvxlan/store.db etcd://10.1.0.1:2379
pyvxlan store migrate etcd://10.1.0.1:2379 zk://10.1.0.9:2181
pyvxlan store migrate --abort etcd://10.1.0.1:2379 zk://10.1.0.9:2181
"""),
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--replace", is_flag=True, help="In place of what TO holds, if no host uses it.")
@click.option("--abort", "aborting", is_flag=True,
              help="Give up a move that broke off, and empty TO.")  # fmt: skip
def store_migrate(source: str, target: str, *, replace: bool, aborting: bool) -> None:
    """Move the cluster to another store while its hosts run.

    TO is the URL that every host opens, so it must mean the same store on all of them, and name
    files that are there. Each host tries it first; then, for a moment, nothing can be changed; then
    all hosts go over by themselves. No traffic is lost. It may be repeated at any point.
    """
    from pyvxlan.daemon.upkeep import migrate  # noqa: PLC0415

    if aborting and replace:
        raise click.UsageError("--abort and --replace exclude each other")
    if aborting:
        _say(_run(lambda: migrate.abort(source, target, say=_say)))
    else:
        _say(_run(lambda: migrate.migrate(source, target, replace=replace, say=_say)))


def store_url(ctx: click.Context) -> str:
    """Finds the URL of the daemon's store."""
    from pyvxlan.daemon.config import load, run_dir  # noqa: PLC0415

    directory = run_dir(ctx.find_root().params.get("run_dir"), os.environ)
    try:
        return str(ApiClient(directory).get("status")["store"]["url"])
    except ClientError:
        return _tried(lambda: load({}, os.environ).store)


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    import asyncio  # noqa: PLC0415

    return _tried(lambda: asyncio.run(work()))


def _tried(action: Callable[[], T]) -> T:
    try:
        return action()
    except DaemonError as error:
        raise ClientError(str(error)) from error


def _say(text: str) -> None:
    print(f"pyvxlan: {text}", file=sys.stderr)
