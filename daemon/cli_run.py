"""The verbs `run`, `exec` and `detach --kill`: containers, attached through the API."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyvxlan.daemon.apiclient import ApiClient, ClientError, RefusedError
from pyvxlan.daemon.container import Container, ContainerError, enter, open_process

HOSTNAME_DIGITS = 12


def run(
    client: ApiClient,
    command: Sequence[str],
    *,
    network_refs: Sequence[str],
    name: str,
    ip: str,
    ip6: str,
    mac: str,
    aliases: Sequence[str],
    hostname: str,
    detached: bool,
    log_file: Path | None,
) -> int:
    """Runs a command in a new container and gives its exit code, or 0 if it was left running.

    Raises:
        ClientError: It could not be made, attached or started; nothing of it is left.
    """
    if len(network_refs) > 1 and (chosen := ip or ip6 or mac):
        raise ClientError(f"{chosen} with several networks: give it with one --network only")
    container_id = secrets.token_hex(32)
    hostname = hostname or name or container_id[:HOSTNAME_DIGITS]
    container = Container.create(command, hostname=hostname, detached=detached, log_file=log_file)
    wish = {"name": name, "ip": ip, "ip6": ip6, "mac": mac, "aliases": list(aliases)}
    wish |= {"hostname": hostname, "container_id": container_id, "sandbox": str(container.pid)}
    endpoints: list[Any] = []
    left_running = False
    try:
        for ref in network_refs:
            body = {"network": ref, **wish}
            endpoints.append(client.post("endpoints", body=body, doing=f"attaching to {ref}"))
        addresses = [address for made in endpoints for address in made["addresses"]]
        if not detached:
            return container.run(addresses)
        container.start(addresses)
        left_running = True
    finally:
        if not left_running:
            container.kill()
            _detach_all(client, endpoints)
    for made in endpoints:
        print(made["id"], flush=True)
    return 0


def execute(document: Any, command: Sequence[str]) -> int:
    """Runs a command inside an endpoint's sandbox and gives its exit code."""
    return enter(_sandbox(document), command)


def kill(document: Any) -> None:
    """Ends the process that an endpoint belongs to; one without a process is left alone."""
    sandbox = _sandbox(document)
    if sandbox["pid"] is None:
        return
    try:
        process = open_process(sandbox["pid"], sandbox["start_ticks"])
    except ContainerError:
        return
    signal.pidfd_send_signal(process, signal.SIGKILL)


def _sandbox(document: Any) -> Any:
    label = document["name"] or document["id"]
    if not document["local"]:
        raise ClientError(f"endpoint {label} is on host {document['host']}: run this there")
    return document["sandbox"]


def _detach_all(client: ApiClient, endpoints: Sequence[Any]) -> None:
    """Removes endpoints of a container that has ended; the daemon may have been faster."""
    for made in endpoints:
        try:
            client.delete("endpoints", made["id"], doing=f"detaching {made['name'] or made['id']}")
        except RefusedError as error:
            if error.status != 404:
                print(f"pyvxlan: {error}", file=sys.stderr)
        except ClientError as error:
            print(f"pyvxlan: {error}", file=sys.stderr)
