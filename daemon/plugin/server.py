"""The plug-in's socket: Docker's calls in, answers out, each within a few seconds.

It is there before the store, so that Docker never waits for it: `Plugin.Activate` and the
capabilities are answered at once, also while nothing else can be. A call that needs more waits a
little and then says what is missing. What Docker takes back is answered as done even then: Docker
would not ask again, and `steward` finds what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from pyvxlan.daemon.errors import ConfigError, ConflictError, DaemonError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.handover import Handover
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.plugin.codec import (
    CONTENT_TYPE,
    AddressRelease,
    AddressRequest,
    EndpointCall,
    EndpointCreation,
    JoinCall,
    NetworkCreation,
    NetworkDeletion,
    PoolRelease,
    PoolRequest,
    Request,
    parse,
)
from pyvxlan.daemon.plugin.engine import Engine
from pyvxlan.daemon.plugin.ipam import SPACE, IpamDriver
from pyvxlan.daemon.plugin.network import NetworkDriver
from pyvxlan.daemon.plugin.pairing import Pairing
from pyvxlan.daemon.plugin.steward import Steward
from pyvxlan.daemon.state import State
from pyvxlan.daemon.timings import Timings
from pyvxlan.daemon.unixsocket import serving

log = logging.getLogger(__name__)

READY_S = 4.0
"""How long a call waits while the daemon starts."""
CALL_S = 12.0
"""How long a call may take at all."""
CONSTANT: Mapping[str, Mapping[str, Any]] = {
    "Plugin.Activate": {"Implements": ["NetworkDriver", "IpamDriver"]},
    "NetworkDriver.GetCapabilities": {"Scope": "local", "ConnectivityScope": "global"},
    "IpamDriver.GetCapabilities": {"RequiresMACAddress": False, "RequiresRequestReplay": False},
    # One space for both: Docker 27 then does not ask for a pool over and over.
    "IpamDriver.GetDefaultAddressSpaces": {
        "LocalDefaultAddressSpace": SPACE,
        "GlobalDefaultAddressSpace": SPACE,
    },
    "NetworkDriver.DiscoverNew": {},
    "NetworkDriver.DiscoverDelete": {},
    "NetworkDriver.ProgramExternalConnectivity": {},
    "NetworkDriver.RevokeExternalConnectivity": {},
}
FAREWELLS = frozenset(
    {
        "NetworkDriver.Leave",
        "NetworkDriver.DeleteEndpoint",
        "NetworkDriver.DeleteNetwork",
        "IpamDriver.ReleaseAddress",
        "IpamDriver.ReleasePool",
    }
)
METHODS = frozenset(
    {
        *CONSTANT,
        *FAREWELLS,
        "NetworkDriver.CreateNetwork",
        "NetworkDriver.CreateEndpoint",
        "NetworkDriver.EndpointOperInfo",
        "NetworkDriver.Join",
        "IpamDriver.RequestPool",
        "IpamDriver.RequestAddress",
    }
)
TIMED = METHODS - CONSTANT.keys()
"""Those that do something."""


class Plugin:
    """Serves Docker; the drivers come when the daemon has started."""

    def __init__(self, timings: Timings | None = None) -> None:
        self._timings = timings or Timings()
        self._network: NetworkDriver | None = None
        self._ipam: IpamDriver | None = None
        self._ready = asyncio.Event()
        self._missed: list[NetworkDeletion] = []
        """What users removed while the daemon started; Docker tells nobody again."""

    def connect(
        self,
        engine: Engine,
        handover: Handover,
        state: State,
        local: LocalRecords,
        *,
        names_address: str,
        events: Events | None = None,
        links: MutableMapping[str, Mapping[str, str]] | None = None,
    ) -> asyncio.Task[NoReturn]:
        """Makes the drivers and begins to follow Docker; gives what runs for as long as it does."""
        pairing = Pairing(local)
        steward = Steward(
            engine=engine,
            pairing=pairing,
            handover=handover,
            state=state,
            missed=self._missed,
            events=events,
            links=links,
        )
        ipam = IpamDriver(handover, pairing, state, steward.poke)
        network = NetworkDriver(
            handover=handover,
            addresses=ipam,
            pairing=pairing,
            state=state,
            engine=engine,
            names_address=names_address,
            publish=steward.expect,
        )
        steward.drivers = self._network, self._ipam = network, ipam
        self._ready.set()
        return asyncio.create_task(steward.run(), name="docker")

    @contextlib.asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        """Serves on the socket while inside.

        Raises:
            ConfigError: Another daemon serves there, or the socket can't be made.
        """
        if _answers(path):
            raise ConfigError(
                f"plug-in socket {path} is served by another daemon: give this one its own "
                'plugin_socket, or "" for none'
            )
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path.parent} can't be made: {error.strerror}") from error
        async with serving(self.application(), path):
            yield

    def application(self) -> web.Application:
        """Makes the application that serves all calls."""
        app = web.Application()
        app.add_routes([web.post("/{method}", self._call)])
        return app

    async def _call(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        if method not in METHODS:
            return _answer({"Err": f"{method} is not supported"}, status=404)
        return _answer(await self.answer(method, await request.read()))

    async def answer(self, method: str, body: bytes) -> Mapping[str, Any]:
        """Answers one call; what can't be done is said under `Err` or `Error`."""
        answer = CONSTANT.get(method)
        if answer is not None:
            return answer
        log.debug("plug-in call method=%s body=%s", method, body.decode(errors="replace"))
        try:
            asked = parse(method, body)
            assert asked is not None
            with self._timings.plugin.timed(method):
                await self._until_ready(method, asked)
                async with asyncio.timeout(CALL_S):
                    return await self._perform(method, asked)
        except TimeoutError:
            text = f"not within {CALL_S:g} s: see pyvxlan status on this host, and try again"
        except DaemonError as error:
            text = str(error)
        except Exception as error:
            log.exception("plug-in call failed method=%s", method)
            text = f"internal error {error!r}: see the daemon's log"
        if method in FAREWELLS:
            log.warning("finished later method=%s cause=%s", method, text)
            return {}
        log.info("plug-in call refused method=%s cause=%s", method, text)
        return {"Error" if method.startswith("Ipam") else "Err": text}

    async def _until_ready(self, method: str, asked: Request) -> None:
        try:
            async with asyncio.timeout(READY_S / 2 if method in FAREWELLS else READY_S):
                await self._ready.wait()
        except TimeoutError:
            if isinstance(asked, NetworkDeletion):
                self._missed.append(asked)
            raise ConflictError(
                "pyvxlan-daemon is starting and can't do that yet: is its store reachable? "
                "Try again shortly"
            ) from None

    async def _perform(self, method: str, asked: Request) -> Mapping[str, Any]:
        network, ipam = self._network, self._ipam
        assert network is not None
        assert ipam is not None
        match asked:
            case PoolRequest():
                pool_id, cidr = await ipam.request_pool(asked)
                return {"PoolID": pool_id, "Pool": str(cidr), "Data": {}}
            case AddressRequest():
                return {"Address": await ipam.request_address(asked), "Data": {}}
            case PoolRelease():
                await ipam.release_pool(asked)
            case AddressRelease():
                await ipam.release_address(asked)
            case NetworkCreation():
                await network.create_network(asked)
            case NetworkDeletion():
                await network.delete_network(asked)
            case EndpointCreation():
                return await network.create_endpoint(asked)
            case JoinCall():
                return await network.join(asked)
            case EndpointCall():
                return await self._part(method, asked, network)
        return {}

    @staticmethod
    async def _part(method: str, asked: EndpointCall, network: NetworkDriver) -> Mapping[str, Any]:
        match method.rpartition(".")[2]:
            case "Leave":
                await network.leave(asked)
            case "DeleteEndpoint":
                await network.delete_endpoint(asked)
            case "EndpointOperInfo":
                return {"Value": {}}
        return {}


def _answer(document: Mapping[str, Any], *, status: int = 200) -> web.Response:
    response = web.json_response(document, status=status, content_type=CONTENT_TYPE)
    # Docker repeats a call without its body if the connection ends under it, but whole if it finds
    # nobody: none is left open that a stop could end just as Docker uses it again.
    response.force_close()
    return response


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1)
            probe.connect(str(path))
        except OSError:
            return False
    return True
