"""`pyvxlan why`: whether one endpoint reaches another, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import click

from pyvxlan.daemon.cli_format import as_json, table
from pyvxlan.daemon.cli_options import client_of, examples, format_option, given, names_from

Document: TypeAlias = Mapping[str, Any]


@click.command(
    epilog=examples("""
pyvxlan why bbox1 bbox2
pyvxlan why bbox1 10.0.0.3
pyvxlan why --network ov_net1 blue bbox2       # a namespace of this host
pyvxlan why --format json bbox1 bbox2 | jq -r .code
""")
)
@click.argument("a", callback=given, metavar="A", shell_complete=names_from("endpoints"))
@click.argument("b", callback=given, metavar="B", shell_complete=names_from("endpoints"))
@click.option("--network", default="", metavar="NETWORK", shell_complete=names_from("networks"),
              help="The one to go by, if both are on several.")  # fmt: skip
@format_option("text", "json")
@click.pass_context
def why(ctx: click.Context, /, a: str, b: str, network: str, kind: str) -> int:
    """Say why A does not reach B, and what mends it.

    Compares store, kernel and forwarder of both hosts along the way, then sends marked frames from
    A and follows them. A and B are names, addresses, ids or namespaces. Ends with 0 if A reaches B.
    """
    body = {"a": a, "b": b, "network": network}
    found = client_of(ctx).post("why", body=body, doing=f"following frames from {a} to {b}")
    click.echo(as_json(found) if kind == "json" else text(found))
    return 0 if found["reachable"] else 1


def text(found: Document) -> str:
    """The answer for people."""
    lines = []
    if found["from"]:
        ends = (
            "{name} ({address}, {host})".format_map(_named(found[end])) for end in ("from", "to")
        )
        lines += [f"{' -> '.join(ends)}, network {found['network']}", ""]
        rows = [
            (step["host"], step["where"], _seen(step["request"]), _seen(step["reply"]))
            for step in found["steps"]
        ]
        lines += [table(("HOST", "STOP", "FRAME", "ANSWER"), rows), ""]
    lines.append(f"{'ok' if found['reachable'] else 'not reached'}: {found['text']}")
    if found["remedy"]:
        lines.append(f"to mend it: {found['remedy']}")
    for end in ("from", "to"):
        unheard = found[end]["unheard"] if found[end] else ""
        if unheard and unheard not in found["text"]:
            lines += ["", f"{found[end]['host']} was not asked: {unheard}"]
    for other in found["also"]:
        lines += ["", f"also: {other['text']}", f"to mend it: {other['remedy']}"]
    return "\n".join(lines)


def _named(end: Document) -> Document:
    return {**end, "name": end["name"] or end["endpoint"][:12]}


def _seen(passed: bool | None) -> str:  # noqa: FBT001 - three values
    return "not watched" if passed is None else "seen" if passed else "not seen"
