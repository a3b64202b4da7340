"""`pyvxlan-daemon`: builds every object, owns the order of start and stop.

A clean stop ends the control plane only: containers run on and the forwarder goes on forwarding;
the next start finds both. A start that fails leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import click

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # else gRPC's handlers crash what a namespace forks

from pyvxlan import __version__
from pyvxlan.daemon import api, listening, metrics, peering, rundir
from pyvxlan.daemon.capturing import Capturing
from pyvxlan.daemon.cleanup import clean_up
from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.config import (
    KINDS,
    SETTINGS,
    Settings,
    describe,
    flag,
    load_with_origins,
)
from pyvxlan.daemon.dataplane import Dataplane
from pyvxlan.daemon.dataplane.kernel import KernelDataplane
from pyvxlan.daemon.dataplane.userspace import UserspaceDataplane
from pyvxlan.daemon.dns import NameServers
from pyvxlan.daemon.dockernames import DockerNames
from pyvxlan.daemon.errors import DaemonError, NotFoundError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.gc import Collector
from pyvxlan.daemon.handover import Handover
from pyvxlan.daemon.identity import ensure_identity
from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.kinds import misnamed
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.kv.timed import TimedStore
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.matrix import Matrix
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Host, Peer
from pyvxlan.daemon.names import Names
from pyvxlan.daemon.net import Net
from pyvxlan.daemon.plugin import TIMED, Engine, Plugin
from pyvxlan.daemon.reconcile import Reconciler
from pyvxlan.daemon.service import Service
from pyvxlan.daemon.state import EVERYTHING, State
from pyvxlan.daemon.status import Status
from pyvxlan.daemon.timings import Timings
from pyvxlan.daemon.upkeep.check import warn
from pyvxlan.daemon.upstream import Upstream
from pyvxlan.daemon.webpage import Page
from pyvxlan.daemon.webviews import Readings, Views
from pyvxlan.daemon.why import EXPLAIN, TRACE, Explainer, Tracer, Why
from pyvxlan.daemon.witness import Witness

log = logging.getLogger(__name__)

FIRST_ROUND_S = 10.0
REASON_S = 10.0
"""How long after a start without the store a reason for that may come."""
SILENT = ("can't be reached", "can't be found", "not answer", "no answer")
"""How causes are put for which nothing is known to be wrong but that a server does not answer."""
EPILOG = """\b
Stores, for --store (a missing PREFIX is pyvxlan/v1):
  sqlite:////PATH                         one machine alone
  etcd://HOST[:PORT],.../PREFIX?OPTIONS   with TLS; user and password
  etcd+python-etcd3://...                 the same through python-etcd3
  consul://...                            with TLS; token
  zk://...                                with TLS; user and password

\b
Their options, with & between them, files by absolute path:
  ca=PATH                        TLS, trusting these certificates
  tls=true                       TLS, trusting the system's
  cert=PATH&key=PATH             client certificate to show
  user=NAME&password-file=PATH   etcd, zk: who; a file that only root may read
  token-file=PATH                consul: another such file

\b
Examples:
  pyvxlan-daemon
  pyvxlan-daemon --advertise eth1 --store sqlite:////srv/pyvxlan/store.db
  pyvxlan-daemon --store etcd://h1,h2,h3?ca=/etc/pyvxlan/ca.pem
  pyvxlan-daemon --check-config
  pyvxlan-daemon --cleanup            # with the daemon stopped
"""


def run() -> None:
    """Runs the daemon and ends the process."""
    sys.exit(main(sys.argv[1:], os.environ))


def main(args: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs the daemon; prints at most one line of error. Returns the exit code."""
    try:
        result = command.main(
            list(args), prog_name="pyvxlan-daemon", standalone_mode=False, obj=environ
        )
    except click.UsageError as error:
        return _fail(f"{error.format_message()} (see pyvxlan-daemon --help)", 2)
    except click.Abort:
        return 130
    except DaemonError as error:
        return _fail(str(error), 1)
    return result if isinstance(result, int) else 0


def _fail(text: str, exit_code: int) -> int:
    print(f"pyvxlan-daemon: {text}", file=sys.stderr)
    return exit_code


@click.pass_obj
def _command(
    environ: Mapping[str, str],
    /,
    *,
    config: Path | None,
    check_config: bool,
    cleanup: bool,
    **given: str | tuple[str, ...] | None,
) -> int:
    """Makes overlay networks on this host.

    Every setting may also stand in the configuration file and in the environment: --run-dir is
    run_dir there, and PYVXLAN_RUN_DIR.
    """
    overrides = {
        name: value if isinstance(value, str) else ",".join(value)
        for name, value in given.items()
        if value not in {None, ()}
    }
    settings, origins = load_with_origins(overrides, environ, config)
    parse_url(settings.store)
    listening.tls_context(settings)
    if check_config:
        click.echo(describe(settings, origins), nl=False)
        return 0
    if os.geteuid() != 0:
        return _fail("must run as root, since it makes namespaces and links: try sudo", 1)
    _set_up_log(settings.log_level)
    if cleanup:
        return _report(asyncio.run(clean_up(settings, store_given="store" in overrides)))
    asyncio.run(serve(settings))
    return 0


command = click.Command(
    "pyvxlan-daemon",
    callback=_command,
    help=_command.__doc__,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--config"], type=click.Path(path_type=Path), metavar="FILE",
            help="Configuration file (default /etc/pyvxlan/config.toml, which need not exist).",
        ),
        *(
            click.Option(
                [flag(name)], metavar="VALUE", help=f"{text[0].upper()}{text[1:]}.",
                multiple=KINDS.get(name) == "list of strings",
            )
            for name, text in SETTINGS.items()
        ),
        click.Option(["--check-config"], is_flag=True, help="Print the settings in effect."),
        click.Option(
            ["--cleanup"], is_flag=True,
            help="Remove all that the daemon ever made on this host, and its records in the store.",
        ),
    ],
)  # fmt: skip
click.version_option(__version__, prog_name="pyvxlan-daemon", message="%(prog)s %(version)s")(
    command
)


def _report(failures: Sequence[str]) -> int:
    for text in failures:
        print(f"pyvxlan-daemon: {text}", file=sys.stderr)
    return 1 if failures else 0


def _set_up_log(level: str) -> None:
    """Logs to stderr; without the time if systemd's journal writes it anyway."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s.%(msecs)03dZ "
    formatter = logging.Formatter(
        f"{stamp}%(levelname)s %(name)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM, SIGINT or SIGHUP.

    Raises:
        DaemonError: It could not start; whatever it had begun is undone.
    """
    task = asyncio.current_task()
    assert task is not None
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        async with contextlib.AsyncExitStack() as stack:
            background = await _start(settings, stack)
            log.info("daemon started pid=%d run_dir=%s", os.getpid(), settings.run_dir)
            _notify("READY=1")
            ended, _ = await asyncio.wait(background, return_when=asyncio.FIRST_COMPLETED)
            for failed in ended:
                failed.result()
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
    finally:
        _notify("STOPPING=1")
    log.info("daemon stopped pid=%d", os.getpid())


async def _start(  # noqa: PLR0915 - the one place where everything meets
    settings: Settings, stack: contextlib.AsyncExitStack
) -> Sequence[asyncio.Task[None]]:
    """Starts every part in order; `stack` stops them in the reverse order.

    Returns the tasks that run for as long as the daemon does; one that ends has failed.
    """
    stack.enter_context(rundir.held(settings.run_dir))
    tls = listening.tls_context(settings)
    scraped = _take("metrics_address", settings.metrics_endpoint, stack)
    browsed = _take("web_address", settings.web_endpoint, stack)
    timings = Timings(TIMED)
    events = Events()
    events.note("daemon_started", f"version {__version__}")
    plugin = Plugin(timings)
    dockers_door = await stack.enter_async_context(contextlib.AsyncExitStack())
    if settings.plugin_path:
        await dockers_door.enter_async_context(plugin.serving(settings.plugin_path))
    local = LocalRecords(settings.state_dir, events)
    stack.callback(local.close)
    net = Net(settings, local)
    stack.push_async_callback(net.close)
    port = settings.peer_port
    identity = ensure_identity(settings.state_dir, local.host_id) if port else None
    host = Host(
        id=local.host_id,
        name=settings.host_name or socket.gethostname(),
        vtep=await net.detect_advertise(settings.advertise),
        port=settings.port,
        version=__version__,
        peer=Peer(port, identity.certificate) if identity else None,
    )
    asked = peering.bind(host, port) if port else None
    if asked:
        stack.callback(asked.close)
    store = await ClusterStore.open(
        local.store_for(settings.store), host_id=host.id, opener=partial(_open_timed, timings)
    )
    stack.push_async_callback(store.close)
    mirror = await Mirror.open(settings.state_dir / "mirror.db", store.url)
    stack.push_async_callback(mirror.close)
    state = State(
        store, host, mirror, events=events, wide=lambda: parse_url(store.url).wide_watches
    )
    stack.push_async_callback(state.close)

    def moved(url: str) -> None:
        _note_store(local, mirror, settings.store, url)
        state.arrange_watches()

    store.on_moved = moved
    _note_store(local, mirror, settings.store, store.url)
    joined = {endpoint.network_id for endpoint in local.endpoints.values()}
    joined |= {endpoint.network_id for endpoint in local.withdrawn.values()}
    if not await state.start(joined):
        saying = asyncio.create_task(_say_unread(state, store.url), name="what the start lacks")
        stack.push_async_callback(_end, [saying])
    forwarder = UserspaceDataplane(settings, host.vtep, events)
    dataplane = KernelDataplane(forwarder, net, settings, host.vtep)
    stack.push_async_exit(_Stop(dataplane, local))
    await dataplane.start()
    membership = Membership(store, state, host)
    stack.push_async_callback(membership.close)
    await membership.register()
    reconciler = Reconciler(
        state=state,
        local=local,
        net=net,
        dataplane=dataplane,
        settings=settings,
        host=host,
        timings=timings,
        events=events,
    )
    service = Service(
        store=store,
        state=state,
        local=local,
        membership=membership,
        reconciler=reconciler,
        net=net,
        settings=settings,
        host=host,
        timings=timings,
    )
    names = NameServers(
        reconciler.sandboxes, Names(state), Upstream(settings.resolvers), net.dns_sockets
    )
    stack.push_async_callback(names.close)
    reconciler.after_round = names.sync
    links: dict[str, Mapping[str, str]] = {}
    served: NameServers | DockerNames = names
    if settings.plugin_path:
        address = IPv4Address(settings.names_address)
        docker = DockerNames(names, local, net.names_sockets, address, links)
        stack.push_async_callback(docker.close)
        reconciler.after_round = partial(_sync, names, docker)
        served = docker
    reconciler.on_sandbox_lost = partial(_remove_lost, service)
    status = Status(
        settings=settings,
        store=store,
        state=state,
        local=local,
        membership=membership,
        dataplane=dataplane,
        progress=reconciler,
        names=served,
        events=events,
    )
    background = [
        asyncio.create_task(reconciler.run(), name="reconciler"),
        asyncio.create_task(service.keep(), name="repair"),
        asyncio.create_task(
            _collector(store, state, membership, service, host=host, dataplane=dataplane).run(),
            name="collector",
        ),
    ]
    if settings.probe_interval_s:
        background.append(asyncio.create_task(status.watch_tunnels(), name="tunnels"))
    if settings.plugin_path:
        handover = Handover(
            service=service,
            state=state,
            local=local,
            reconciler=reconciler,
            net=net,
            host=host,
            names_address=IPv4Address(settings.names_address),
        )
        engine = Engine(settings.docker_socket, settings.plugin_path.stem)
        background.append(
            plugin.connect(
                engine,
                handover,
                state,
                local,
                names_address=settings.names_address,
                events=events,
                links=links,
            )
        )
    stack.push_async_callback(_end, background)
    try:
        await reconciler.settled(EVERYTHING, FIRST_ROUND_S)
    except DaemonError as error:
        log.warning("daemon starts unsettled cause=%s", error)
    if scraped:
        exposed = metrics.Metrics(status.reading, timings, __version__).application()
        await stack.enter_async_context(listening.serving(exposed, scraped, tls))
    if browsed:
        readings = Readings(partial(status.document_with_tunnels, __version__))
        page = Page(Views(readings, state, status.events), {host.name, *settings.web_names})
        await stack.enter_async_context(listening.serving(page.application(), browsed, tls))
    peers = peering.Peering(lambda: state.hosts, host, identity)
    why = Why(service=service, state=state, local=local, sandboxes=net, peering=peers)
    here = Explainer(
        settings=settings,
        host=host,
        state=state,
        local=local,
        net=net,
        dataplane=dataplane,
        progress=reconciler,
    )
    tracer = Tracer(state=state, local=local, net=net, dataplane=dataplane)
    peers.answer(EXPLAIN, here.explain)
    peers.answer_stream(TRACE, tracer.answer)
    if asked:
        await stack.enter_async_context(peers.serving(asked))
    look = asyncio.create_task(_look_at_store(store, state), name="look at the store")
    stack.push_async_callback(_end, [look])
    app = api.Api(
        service,
        lambda: local.endpoints,
        net,
        partial(status.document, __version__),
        events=status.events,
        why=why.ask,
        capturing=Capturing(service, dataplane, peers, host),
        peers=status.peers_document,
        matrix=Matrix(service.hosts, status.peers_document, peers).document,
    )
    await stack.enter_async_context(api.serving(app.application(), settings.api_socket))
    # The first to open and the first to close: calls that have begun end while all is still there,
    # and Docker tries those that find nobody again.
    stack.push_async_callback(dockers_door.aclose)
    return background


def _take(
    setting: str, endpoint: tuple[str, int] | None, stack: contextlib.AsyncExitStack
) -> socket.socket | None:
    """Takes the address of a setting before anything is made; None if it is off."""
    if endpoint is None:
        return None
    bound = listening.bind(setting, *endpoint)
    stack.callback(bound.close)
    return bound


async def _open_timed(timings: Timings, url: str) -> Store:
    return TimedStore(await open_store(url), timings)


def _collector(
    store: Store,
    state: State,
    membership: Membership,
    service: Service,
    *,
    host: Host,
    dataplane: Dataplane,
) -> Collector:
    return Collector(
        store,
        state,
        membership,
        service.registry,
        host,
        reservations=service.reservations,
        witness=Witness(store, state, membership, dataplane.stats),
    )


async def _sync(names: NameServers, docker: DockerNames) -> None:
    await names.sync()
    await docker.sync()


def _note_store(local: LocalRecords, mirror: Mirror, configured: str, url: str) -> None:
    """Remembers where the cluster is; says at each start that the setting is out of date."""
    local.remember_store(configured, url)
    mirror.move(url)
    if url != configured:
        log.warning("cluster has moved configured=%s store=%s: change the setting", configured, url)


async def _say_unread(state: State, url: str) -> None:
    """Says what the daemon starts from if the store does not answer, once it is known why."""
    with contextlib.suppress(DaemonError):
        await state.wait_for(lambda: bool(state.stale_reason or state.synced), timeout_s=REASON_S)
    if state.synced:
        return
    other = await misnamed(parse_url(url))
    reason = "; ".join(f"{member} {why}" for member, why in other.items())
    cause = reason or state.stale_reason or "no answer"
    if state.known:
        since = state.stale_since
        log.warning(
            "store not reached, daemon goes on from its mirror store=%s age_s=%.0f networks=%d "
            "hosts=%d cause=%s",
            url,
            time.monotonic() - since if since is not None else 0,
            len(state.networks),
            len(state.hosts),
            cause,
        )
    else:
        # What names the store itself was said by its servers, with a remedy of its own.
        about = f"store {url}: "
        told = reason or cause.startswith(about) or not any(sign in cause for sign in SILENT)
        remedy = "" if told else ": start the store, or name another with --store"
        log.error(
            "store never reached, no network is known, tried again store=%s cause=%s%s",
            url,
            cause.removeprefix(about),
            remedy,
        )


async def _look_at_store(store: ClusterStore, state: State) -> None:
    """Says what is wrong with the store's servers and settings, once they can be asked."""
    await state.wait_for(lambda: state.synced, timeout_s=None)
    await warn(store, store.url)


class _Stop:
    """Lets go of the forwarder, and ends it if the daemon failed with nothing attached."""

    def __init__(self, dataplane: Dataplane, local: LocalRecords) -> None:
        self._dataplane = dataplane
        self._local = local

    async def __aenter__(self) -> None:
        """Nothing to do: `Dataplane.start` may fail half-way."""

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        await self._dataplane.stop(kill=failed and not self._local.endpoints)


async def _remove_lost(service: Service, endpoint_id: str) -> None:
    """Withdraws an endpoint whose sandbox is gone; the command line may have been faster."""
    with contextlib.suppress(NotFoundError):
        await service.delete_endpoint(endpoint_id)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _notify(text: str) -> None:
    """Tells systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), address)
