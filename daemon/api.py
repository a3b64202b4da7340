"""The daemon's own API: JSON over HTTP on a unix socket, for the command line and for scripts.

Only root may connect (mode 0600). Every path begins with `/v1`; docs/api.md describes them. An
error is `{"error": text, "retry": bool}` with the status of the exception. Decides nothing: each
handler calls one verb of `Service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from pyvxlan._dataplane import MAX_SNAP_BYTES
from pyvxlan.daemon.capturing import Capturing
from pyvxlan.daemon.config import suggestion
from pyvxlan.daemon.documents import (
    Document,
    View,
    endpoint_document,
    host_document,
    network_document,
    parse_attach_request,
    parse_empty_request,
    parse_network_request,
    parse_why_request,
)
from pyvxlan.daemon.errors import DaemonError, InvalidError, NotFoundError
from pyvxlan.daemon.model import Endpoint, LocalEndpoint, Sandbox, host_ifname
from pyvxlan.daemon.net import Carried
from pyvxlan.daemon.requests import WhySpec
from pyvxlan.daemon.service import Service
from pyvxlan.daemon.unixsocket import serving

__all__ = ["Api", "Sandboxes", "answer_errors", "serving"]

log = logging.getLogger(__name__)

BODY_MAX_BYTES = 128 * 1024
ALL_HOSTS = "all"
REF = "{ref:[^/]+}"
"""A part of a path that names something; `{ref}` would not match a name with braces."""
STALE_HEADER = "Pyvxlan-Stale-Seconds"
"""In answers while the store is away: for how long."""
LOOK_S = 0.5
"""How often a stream without traffic looks whether its reader is still there."""
BLOCK = struct.Struct("!Ic")
"""In front of each block of a stream: how many bytes it has, and `J` for JSON, `D` for data or `E`
for an error."""


class Sandboxes(Protocol):
    """Finds namespaces, and what goes to and from them; `daemon.net.Net` does it."""

    async def resolve_sandbox(self, text: str) -> Sandbox:
        """Finds a network namespace by name, path or pid."""

    async def carried(self) -> Mapping[str, Carried]:
        """What each endpoint has sent and received, by `host_ifname`."""


class Api:
    """The handlers.

    Args:
        service: Does what is asked.
        local: This host's endpoints, as they are now.
        sandboxes: For `detach` of a namespace, and for what endpoints send and receive.
        status: Gives the document of `GET /v1/status`.
        events: Gives that of `GET /v1/events`, from a number on.
        why: Gives that of `POST /v1/why`.
        capturing: Captures frames, and knows the last that were dropped.
        peers: Gives that of `GET /v1/peers`.
        matrix: Gives that of all hosts.
    """

    def __init__(
        self,
        service: Service,
        local: Callable[[], Mapping[str, LocalEndpoint]],
        sandboxes: Sandboxes,
        status: Callable[[], Awaitable[Document]],
        *,
        events: Callable[[int], list[Document]],
        why: Callable[[WhySpec], Awaitable[Document]],
        capturing: Capturing,
        peers: Callable[[], Awaitable[list[Document]]],
        matrix: Callable[[], Awaitable[list[Document]]],
    ) -> None:
        self._service = service
        self._local = local
        self._sandboxes = sandboxes
        self._status = status
        self._events = events
        self._why = why
        self._capturing = capturing
        self._peers = peers
        self._matrix = matrix

    def application(self) -> web.Application:
        """Makes the application that serves all paths."""
        app = web.Application(
            middlewares=[answer_errors, self._tell_age], client_max_size=BODY_MAX_BYTES
        )
        app.add_routes(
            [
                web.get("/v1/status", self._show_status),
                web.get("/v1/events", self._list_events),
                web.post("/v1/why", self._explain),
                web.get("/v1/peers", self._list_peers),
                web.get("/v1/hosts", self._list_hosts),
                web.get("/v1/networks", self._list_networks),
                web.post("/v1/networks", self._create_network),
                web.post("/v1/networks/prune", self._prune_networks),
                web.get(f"/v1/networks/{REF}", self._inspect_network),
                web.delete(f"/v1/networks/{REF}", self._remove_network),
                web.get("/v1/endpoints", self._list_endpoints),
                web.post("/v1/endpoints", self._attach),
                web.get(f"/v1/endpoints/{REF}", self._inspect_endpoint),
                web.delete(f"/v1/endpoints/{REF}", self._detach),
                web.get("/v1/traffic", self._list_traffic),
                web.get(f"/v1/captures/{REF}", self._show_subject),
                web.get(f"/v1/captures/{REF}/stream", self._capture),
                web.get("/v1/drops", self._list_drops),
            ]
        )
        app.on_shutdown.append(self._end_captures)
        return app

    @web.middleware
    async def _tell_age(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Marks answers that are from memory, since the store does not answer."""
        answer = await handler(request)
        stale_s = self._service.stale_s
        if stale_s is not None and request.path not in {"/v1/status", "/v1/events"}:
            answer.headers[STALE_HEADER] = f"{stale_s:.1f}"
        return answer

    async def _show_status(self, request: web.Request) -> web.Response:
        _query(request)
        return _answer(await self._status())

    async def _list_events(self, request: web.Request) -> web.Response:
        return _answer(self._events(_number(_query(request, "after"), "after")))

    async def _explain(self, request: web.Request) -> web.Response:
        _query(request)
        return _answer(await self._why(parse_why_request(await _body(request))))

    async def _list_peers(self, request: web.Request) -> web.Response:
        host = _query(request, "host").get("host", "")
        if host not in {"", ALL_HOSTS}:
            raise InvalidError(f"host {host!r}: leave it out for this host, or give {ALL_HOSTS}")
        return _answer(await (self._matrix() if host else self._peers()))

    async def _list_hosts(self, request: web.Request) -> web.Response:
        _query(request)
        hosts = await self._service.hosts()
        return _answer(
            [host_document(entry.host, alive=entry.alive, is_self=entry.is_self) for entry in hosts]
        )

    async def _list_networks(self, request: web.Request) -> web.Response:
        _query(request)
        return _answer([network_document(network) for network in await self._service.networks()])

    async def _create_network(self, request: web.Request) -> web.Response:
        _query(request)
        spec = parse_network_request(await _body(request))
        return _answer(network_document(await self._service.create_network(spec)), status=201)

    async def _prune_networks(self, request: web.Request) -> web.Response:
        parse_empty_request(await _body(request) if request.can_read_body else {})
        removed = await self._service.prune_networks()
        return _answer([network_document(network) for network in removed])

    async def _inspect_network(self, request: web.Request) -> web.Response:
        _query(request)
        network = await self._service.find_network(request.match_info["ref"])
        endpoints = await self._service.endpoints(network.id)
        documents = await self._endpoint_documents(endpoints)
        return _answer(network_document(network) | {"endpoints": documents})

    async def _remove_network(self, request: web.Request) -> web.Response:
        _query(request)
        network = await self._service.remove_network(request.match_info["ref"])
        return _answer(network_document(network))

    async def _list_endpoints(self, request: web.Request) -> web.Response:
        query = _query(request, "network", "local")
        local = _flag(query, "local")
        of = self._service.attached if local else self._service.endpoints
        endpoints = await of(query.get("network"))
        return _answer(await self._endpoint_documents(endpoints))

    async def _list_traffic(self, request: web.Request) -> web.Response:
        _query(request)
        if not self._local():  # Nor does one need a store, then.
            return _answer([])
        carried = await self._sandboxes.carried()
        documents = await self._endpoint_documents(await self._service.attached())
        return _answer(
            [
                {key: document[key] for key in ("id", "name", "network", "network_id")}
                | asdict(carried[port])
                for document in documents
                if (port := host_ifname(document["id"])) in carried
            ]
        )

    async def _attach(self, request: web.Request) -> web.Response:
        _query(request)
        endpoint = await self._service.attach(parse_attach_request(await _body(request)))
        return _answer((await self._endpoint_documents([endpoint]))[0], status=201)

    async def _inspect_endpoint(self, request: web.Request) -> web.Response:
        """Shows one endpoint; with `local`, a name that one container has twice is no riddle."""
        ref = request.match_info["ref"]
        endpoint = None
        if _flag(_query(request, "local"), "local"):
            endpoint = await self._in_one_sandbox(ref)
        endpoint = endpoint or await self._service.find_endpoint(ref)
        return _answer((await self._endpoint_documents([endpoint]))[0])

    async def _detach(self, request: web.Request) -> web.Response:
        """Detaches an endpoint, or all endpoints of a namespace of this host."""
        query = _query(request, "force", "network")
        force = _flag(query, "force")
        endpoints = await self._detachable(request.match_info["ref"], query.get("network"))
        documents = await self._endpoint_documents(endpoints)
        for endpoint in endpoints:
            await self._service.detach(endpoint.id, force=force)
        return _answer(documents)

    async def _show_subject(self, request: web.Request) -> web.Response:
        """Shows what a capture of a name would be of, and which hosts carry it."""
        _query(request)
        subject = await self._capturing.subject(request.match_info["ref"])
        endpoint = subject.endpoint
        documents = await self._endpoint_documents([endpoint] if endpoint else [])
        return _answer(
            {
                "network": network_document(subject.network),
                "endpoint": documents[0] if documents else None,
                "hosts": [host.name for host in subject.hosts],
            }
        )

    async def _capture(self, request: web.Request) -> web.StreamResponse:
        """Streams what becomes of frames, until whoever asked goes away.

        What goes wrong once it has begun is the last block.
        """
        query = _query(request, "host", "snap_bytes", "drops_only")
        subject = await self._capturing.subject(request.match_info["ref"])
        host = await self._capturing.host(query.get("host", ""))
        snap_bytes = _number(query, "snap_bytes") or MAX_SNAP_BYTES
        drops_only = _flag(query, "drops_only")
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        async with self._capturing.stream(
            subject, host, snap_bytes=snap_bytes, drops_only=drops_only
        ) as (messages, stop):
            gone = asyncio.create_task(_disconnected(request))
            gone.add_done_callback(lambda _: stop.set())
            try:
                with contextlib.suppress(ConnectionResetError):  # the other side's way to end it
                    async for message in messages:
                        if not answer.prepared:
                            await answer.prepare(request)
                        await answer.write(_block(message))
            except DaemonError as error:
                if not answer.prepared:
                    raise
                await answer.write(_block({"error": str(error)}, b"E"))
            finally:
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
        return answer

    async def _list_drops(self, request: web.Request) -> web.Response:
        query = _query(request, "host", "network")
        host = await self._capturing.host(query.get("host", ""))
        return _answer(await self._capturing.drops(host, query.get("network", "")))

    async def _end_captures(self, _: web.Application) -> None:
        """Ends what would go on for ever, so that the daemon can."""
        self._capturing.end_all()

    async def _detachable(self, ref: str, network_ref: str | None) -> list[Endpoint]:
        """Finds what a reference to an endpoint, or to a namespace of this host, stands for."""
        network = await self._service.find_network(network_ref) if network_ref else None
        if network:
            of_network = await self._service.endpoints(network.id)
            named = [e for e in of_network if ref in {e.id, e.name} or e.id.startswith(ref)]
            if len(named) == 1:
                return named
        try:
            found = [await self._service.find_endpoint(ref)]
        except NotFoundError as unknown:
            found = await self._in_namespace(ref, unknown)
        if network:
            found = [endpoint for endpoint in found if endpoint.network_id == network.id]
            if not found:
                raise NotFoundError(f"{ref} has no endpoint on network {network.name}")
        return found

    async def _in_namespace(self, ref: str, unknown: NotFoundError) -> list[Endpoint]:
        """Finds the endpoints of a namespace of this host; raises `unknown` if it is none."""
        try:
            sandbox = await self._sandboxes.resolve_sandbox(ref)
        except (InvalidError, NotFoundError):
            raise unknown from None
        local = self._local()
        within = {id_ for id_, entry in local.items() if entry.sandbox.inode == sandbox.inode}
        found = [e for e in await self._service.attached() if e.id in within]
        if not found:
            raise NotFoundError(f"namespace {ref} has no endpoint: see pyvxlan endpoint ls")
        return found

    async def _in_one_sandbox(self, ref: str) -> Endpoint | None:
        """Finds an endpoint of this host by name, if all that have it are of one container."""
        local = self._local()
        named = [endpoint for endpoint in await self._service.attached() if endpoint.name == ref]
        sandboxes = {local[endpoint.id].sandbox.inode for endpoint in named}
        return named[0] if len(sandboxes) == 1 else None

    async def _endpoint_documents(self, endpoints: list[Endpoint]) -> list[Document]:
        view = View(
            networks={network.id: network for network in await self._service.networks()},
            hosts={entry.host.id: entry.host for entry in await self._service.hosts()},
            local=self._local(),
        )
        return [endpoint_document(endpoint, view) for endpoint in endpoints]


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every exception into a JSON answer; only what nobody foresaw is logged."""
    try:
        return await handler(request)
    except DaemonError as error:
        return _refusal(str(error), error.status, retry=error.retry)
    except web.HTTPException as error:
        return _refusal(_explanation(request, error), error.status)
    except Exception:
        number = secrets.token_hex(4)
        log.exception(
            "request failed id=%s method=%s path=%s", number, request.method, request.path
        )
        return _refusal(f"internal error {number}: see the daemon's log for it", 500)


def _explanation(request: web.Request, error: web.HTTPException) -> str:
    match error:
        case web.HTTPMethodNotAllowed():
            remedy = f"this path takes {', '.join(sorted(error.allowed_methods))}"
        case web.HTTPRequestEntityTooLarge():
            remedy = f"a body has at most {BODY_MAX_BYTES} bytes"
        case web.HTTPNotFound():
            known = "status, events, peers, hosts, networks or endpoints"
            remedy = f"paths are /v1/ and {known} (docs/api.md)"
        case _:
            remedy = error.reason
    return f"{request.method} {request.path}: {remedy}"


async def _body(request: web.Request) -> object:
    try:
        return json.loads(await request.read())
    except RecursionError as error:
        raise InvalidError("the request's body is nested too deep") from error
    except ValueError as error:
        raise InvalidError(f"the request's body is not valid JSON: {error}") from error


def _query(request: web.Request, *known: str) -> Mapping[str, str]:
    for name in request.query:
        if name not in known:
            hint = suggestion(name, list(known)) if known else "there are none here"
            raise InvalidError(f"unknown parameter {name!r}: {hint}")
    return request.query


def _flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in {"true", "false"}:
        raise InvalidError(f"parameter {name}={text} must be true or false")
    return text == "true"


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= 16):
        raise InvalidError(f"parameter {name}={text} must be a number")
    return int(text)


async def _disconnected(request: web.Request) -> None:
    """Returns when whoever asked has gone, which aiohttp tells nobody who waits for it."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


def _block(content: object, kind: bytes = b"J") -> bytes:
    """Makes one block of a stream of bytes, or of a document."""
    if isinstance(content, bytes):
        kind, body = b"D", content
    else:
        body = json.dumps(content).encode()
    return BLOCK.pack(len(body), kind) + body


def _answer(document: object, *, status: int = 200) -> web.Response:
    return web.json_response(document, status=status)


def _refusal(text: str, status: int, *, retry: bool = False) -> web.Response:
    return web.json_response({"error": text, "retry": retry}, status=status)
