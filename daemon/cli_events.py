"""`pyvxlan events`: what has changed on this host and in its cluster, as the daemon noted it."""

from __future__ import annotations

import json
import sys
import time

import click

from pyvxlan.daemon.apiclient import UnreachableError
from pyvxlan.daemon.cli_options import client_of, examples, format_option

POLL_S = 0.5


@click.command(
    epilog=examples("""
pyvxlan events
pyvxlan events --follow
pyvxlan events --format json | jq 'select(.kind == "repaired")'
""")
)
@click.option("-f", "--follow", is_flag=True, help="Go on with those to come, until Ctrl-C.")
@format_option("text", "json")
@click.pass_context
def events(ctx: click.Context, /, *, follow: bool, kind: str) -> None:
    """Show what came, went, broke and was mended.

    Up to a thousand events since the daemon started, oldest first, one a line. Those of endpoints
    are of networks on this host.
    """
    client, last, reached = client_of(ctx), 0, True
    while True:
        try:
            found = client.get("events", after=str(last))
            reached = True
        except UnreachableError as error:
            if not last:
                raise
            if reached:
                click.echo(f"pyvxlan: {error}", err=True)
            found, reached = [], False
        for event in found:
            last = event["number"]
            click.echo(
                json.dumps(event, ensure_ascii=False)
                if kind == "json"
                else f"{event['time']}  {event['kind']:<18}  {event['text']}"
            )
        if not follow:
            return
        sys.stdout.flush()
        time.sleep(POLL_S)
