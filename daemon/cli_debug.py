"""`pyvxlan debug`: what to send to whoever shall find out what is wrong."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import click

from pyvxlan.daemon.apiclient import ClientError
from pyvxlan.daemon.cli_options import client_of, examples
from pyvxlan.daemon.errors import DaemonError


@click.group()
def debug() -> None:
    """Gather what tells what is wrong."""


@debug.command("dump", epilog=examples("pyvxlan debug dump\npyvxlan debug dump -o - | tar tz"))
@click.option("-o", "--output", metavar="FILE", help="Where to, else pyvxlan-HOST-TIME.tar.gz "
              "here; - for stdout.")  # fmt: skip
@click.pass_context
def debug_dump(ctx: click.Context, /, output: str | None) -> None:
    """Write one archive of this host's state. Prints its name.

    Status, networks, endpoints, metrics, logs, what the kernel holds; no secret. What can't be had,
    as when the daemon is down, is named in its failures.txt.
    """
    from pyvxlan.daemon.config import load_with_origins  # noqa: PLC0415
    from pyvxlan.daemon.debugdump import Dump  # noqa: PLC0415

    run_dir = ctx.find_root().params.get("run_dir")
    overrides = {} if run_dir is None else {"run_dir": str(run_dir)}
    try:
        settings, origins = load_with_origins(overrides, os.environ)
    except DaemonError as error:
        raise ClientError(str(error)) from error
    dump = Dump(settings, origins, client_of(ctx))
    dump.gather()
    packed = dump.archive()
    if output == "-":
        sys.stdout.buffer.write(packed)
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = Path(output or f"pyvxlan-{platform.node()}-{stamp}.tar.gz")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(packed)
    except OSError as error:
        raise ClientError(f"{path} can't be written: {error.strerror}") from error
    click.echo(path)
