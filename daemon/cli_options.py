"""What the commands of `cli.py` share: options, completion, and how lists are printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from pyvxlan.daemon import cli_format
from pyvxlan.daemon.apiclient import ApiClient, ClientError, RefusedError

F = TypeVar("F", bound=Callable[..., Any])
Ref = TypeVar("Ref", str, tuple[str, ...])


def examples(text: str) -> str:
    """An epilog that is printed line by line, as it is written."""
    lines = text.strip("\n").splitlines()
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def client_of(ctx: click.Context) -> ApiClient:
    """A client of the daemon that --run-dir, the environment or the configuration name."""
    from pyvxlan.daemon.config import run_dir  # noqa: PLC0415 - not every command needs it

    return ApiClient(run_dir(ctx.find_root().params.get("run_dir"), os.environ))


def names_from(*path: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completes with the names that a list of the API holds; with nothing if nobody answers."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = dict.fromkeys(document["name"] for document in client_of(ctx).get(*path))
        except ClientError:
            return []
        return [CompletionItem(name) for name in names if name and name.startswith(incomplete)]

    return complete


def given(_: click.Context, param: click.Parameter, value: Ref) -> Ref:
    """Refuses an empty reference, which a script's unset variable makes."""
    if "" in ((value,) if isinstance(value, str) else value):
        raise click.BadParameter("'' names nothing", param=param)
    return value


def pairs(_: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Reads options of the form KEY=VALUE; the last one of a key counts."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param=param)
        pairs[key] = value
    return pairs


def listing(command: F) -> F:
    """The options of every command that lists."""
    for option in (
        click.option("--no-trunc", is_flag=True, help="Whole ids instead of 12 digits."),
        click.option("-q", "--quiet", is_flag=True, help="Only ids, one a line."),
        format_option("table", "json"),
    ):
        command = option(command)
    return command


def format_option(*kinds: str) -> Callable[[F], F]:
    """The option --format; the first kind is the default."""
    return click.option(
        "--format", "kind", type=click.Choice(kinds), default=kinds[0], show_default=True,
        help="How to print.",
    )  # fmt: skip


def endpoint_options(command: F) -> F:
    """The options of every command that makes an endpoint."""
    for option in (
        click.option("--hostname", default="", metavar="NAME", help="A name it also answers to."),
        click.option("--alias", "aliases", multiple=True, metavar="NAME",
                     help="One more name; others may have it too. Repeat for several."),
        click.option("--mac", default="", metavar="MAC", help="MAC address, else 02:42 + IPv4."),
        click.option("--ip6", default="", metavar="IP", help="IPv6 address, else the next free."),
        click.option("--ip", default="", metavar="IP", help="IPv4 address, else a free one."),
        click.option("--name", default="", metavar="NAME", help="Name, one per network."),
    ):  # fmt: skip
        command = option(command)
    return command


def print_list(
    documents: list[Any],
    render: Callable[..., str],
    *,
    kind: str,
    quiet: bool,
    no_trunc: bool,
) -> None:
    """Prints what a command lists, as its options say."""
    if quiet:
        for document in documents:
            click.echo(cli_format.short(document["id"], whole=no_trunc))
    elif kind == "json":
        click.echo(cli_format.as_json(documents))
    else:
        click.echo(render(documents, whole=no_trunc))


def each(refs: Sequence[str], action: Callable[[str], None]) -> int:
    """Runs an action for each, whatever becomes of the others; returns the exit code."""
    exit_code = 0
    for ref in refs:
        try:
            action(ref)
        except RefusedError as error:
            exit_code = fail(str(error), error.exit_code)
    return exit_code


def fail(text: str, exit_code: int) -> int:
    """Prints the one line of an error; returns the exit code."""
    print(f"pyvxlan: {text}", file=sys.stderr)
    return exit_code
