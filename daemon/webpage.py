"""The web page: this host and its overlays as a live picture, read-only, and JSON behind each view.

docs/web.md describes it. Three files without any outside resource, held to that by their content
security policy. Since a browser is led here by any page that its user opens, a request must name
this server by an address or name of its own (against DNS rebinding), and must not come from a page
of somebody else.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from pyvxlan.daemon.webviews import VIEWS, Views

ASSETS = Path(__file__).parent / "assets"
FILES: Mapping[str, tuple[str, str]] = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
FIND_MAX = 200
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]/@\s]+))(?::\d{1,5})?")
"""RFC 9110, section 7.2: a name or an address, and maybe a port."""


def refusal(headers: Mapping[str, str], path: str, own: str, names: Collection[str]) -> str:
    """Says why a request is not answered; empty if it is.

    Args:
        headers: Of the request.
        path: What it asks for.
        own: The address at which it arrived.
        names: Those under which this server may be asked for, in small letters.
    """
    host = headers.get("Host", "")
    match = _HOST.fullmatch(host)
    name = (match[1] or match[2]).lower().removesuffix(".") if match else ""
    if not (name in names or _is_address(name, own)):
        return (
            f"Host {host!r} is none of this server's: ask for it by its address or as localhost, "
            "or name it in the setting web_names"
        )
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        return f"Origin {origin!r} is another page than this server's"
    site = headers.get("Sec-Fetch-Site", "none")
    # Whoever follows a link to the page comes from elsewhere, and sees it: nobody else does.
    linked = path == "/" and headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in {"none", "same-origin"} and not linked:
        return f"a page of another site asks for {path} (Sec-Fetch-Site: {site})"
    return ""


class Page:
    """The handlers.

    Args:
        views: Makes the documents.
        names: Under which browsers may ask for the page, besides localhost and its address.
    """

    def __init__(self, views: Views, names: Collection[str]) -> None:
        self._views = views
        self._names = {"localhost", *(name.lower() for name in names)}
        self._files = {
            path: (ASSETS.joinpath(name).read_bytes(), kind) for path, (name, kind) in FILES.items()
        }

    def application(self) -> web.Application:
        """Makes the application that serves the page and its JSON."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes([web.get(path, self._file) for path in FILES])
        app.add_routes(
            [
                web.get("/api/v1/all", self._everything),
                web.get(f"/api/v1/{{view:{'|'.join(VIEWS)}}}", self._view),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        arrived = request.transport.get_extra_info("sockname") if request.transport else None
        own = str(arrived[0]) if arrived else ""
        if why := refusal(request.headers, request.path, own, self._names):
            answer: web.StreamResponse = web.Response(status=403, text=f"{why}\n")
        else:
            try:
                answer = await handler(request)
            except web.HTTPException as error:
                answer = web.Response(status=error.status, text=f"{error.status}: {error.reason}\n")
        answer.headers.update(HEADERS)
        return answer

    async def _file(self, request: web.Request) -> web.Response:
        content, kind = self._files[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _everything(self, request: web.Request) -> web.Response:
        find, after = _query(request)
        return await _answer(await self._views.everything(find=find, after=after))

    async def _view(self, request: web.Request) -> web.Response:
        find, after = _query(request)
        name = request.match_info["view"]
        return await _answer(await self._views.view(name, find=find, after=after))


def _query(request: web.Request) -> tuple[str, int]:
    """Reads `find` and `after`.

    Raises:
        HTTPBadRequest: There is something else, or one can't be.
    """
    unknown = request.query.keys() - {"find", "after"}
    find, after = request.query.get("find", ""), request.query.get("after", "0")
    if unknown or len(find) > FIND_MAX or not (after.isascii() and after.isdecimal()):
        raise web.HTTPBadRequest(
            reason=f"parameters are find (up to {FIND_MAX} characters) and after (a number)"
        )
    return find, int(after[:16])


async def _answer(document: object) -> web.Response:
    """Writes JSON, in a thread, since a thousand networks are many lines."""
    body = await asyncio.to_thread(json.dumps, document)
    return web.Response(text=body, content_type="application/json")


def _is_address(text: str, own: str) -> bool:
    """Tells whether a text is the address `own`, however it is written."""
    try:
        return ip_address(text) == ip_address(own.partition("%")[0])
    except ValueError:
        return False
