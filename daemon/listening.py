"""TCP addresses on which the daemon serves pages: taken at its start, by TLS if so set.

Metrics and web page have this in common, and so one certificate and one authority.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from pyvxlan.daemon.config import Settings, flag
from pyvxlan.daemon.errors import ConfigError


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Reads the certificates that the settings name; None if there is to be no TLS.

    Raises:
        ConfigError: One is missing or can't be used; the message names it and the remedy.
    """
    cert, key, ca = settings.metrics_cert, settings.metrics_key, settings.metrics_client_ca
    if cert is None or key is None:
        if cert or key or ca:
            raise ConfigError(
                "metrics_cert and metrics_key belong together, and metrics_client_ca needs both: "
                "set what is missing, or none of them"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, path in (("cert", cert), ("key", key), ("client_ca", ca)):
        if path is not None:
            _check_readable(f"metrics_{name}", path)
    try:
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"metrics_cert {cert} and metrics_key {key} are not a certificate and its private "
            f"key, both in PEM form and without a passphrase ({error.reason or error})"
        ) from error
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise ConfigError(f"metrics_client_ca {ca} holds no certificate in PEM form") from error
    return context


def url(settings: Settings, address: str, path: str = "/") -> str | None:
    """Gives the URL of what is served at the address of a setting; None if that is off."""
    scheme = "https" if settings.metrics_cert else "http"
    return f"{scheme}://{address}{path}" if address else None


def bind(setting: str, host: str, port: int) -> socket.socket:
    """Takes the TCP address of a setting; connections are refused until it is served.

    Raises:
        ConfigError: The address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"can't be used: {error.strerror}"
        raise ConfigError(
            f"{setting} {host}:{port} {why}; choose another with {flag(setting)}, or "
            f'{flag(setting)} "" for none'
        ) from error
    return bound


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, bound: socket.socket, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serves on an address that `bind` took while inside, and closes it."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, bound, ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()
        bound.close()


def _check_readable(what: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path} can't be read: {error.strerror}") from error
