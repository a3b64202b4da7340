"""TLS to a store's servers: the files that the URL names, and why a connection fails.

A library's own message seldom says which side has to change what, so a failed connection is looked
at once more, by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from pathlib import Path

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.url import Member, StoreUrl

LOOK_S = 1.0
"""How long one look at a server may take."""
SYSTEM_CAS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the certificates that they trust, in one file."""

UNTRUSTED = "ca= must name the authority that signed it"
NO_TLS = "ends the connection: leave out tls, ca, cert and key if it has no TLS"
NAMED = "it must hold this host name or address, or the URL one that it holds"
VERIFY_REMEDIES = {
    9: "is this host's clock right?",
    10: "renew it; is this host's clock right?",
    62: NAMED,
    64: NAMED,
}
"""By OpenSSL's code of what is wrong with a certificate (X509_verify_cert_error_string(3ssl))."""


def client_context(url: StoreUrl) -> ssl.SSLContext | None:
    """Reads the certificates that a URL names; None if it wants no TLS.

    Raises:
        ConfigError: A file can't be used; the message names it and the remedy.
    """
    if not url.tls:
        return None
    context = ssl.create_default_context()
    if url.ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        pem(url.ca, "ca", url)
        try:
            context.load_verify_locations(url.ca)
        except ssl.SSLError as error:
            raise ConfigError(
                f"store {url}: ca {url.ca} holds no certificate in PEM form"
            ) from error
    if url.cert is not None and url.key is not None:
        pem(url.cert, "cert", url)
        pem(url.key, "key", url)
        try:
            context.load_cert_chain(url.cert, url.key, password="")
        except ssl.SSLError as error:
            raise ConfigError(
                f"store {url}: cert {url.cert} and key {url.key} are not a certificate and its "
                f"private key, both in PEM form and without a passphrase ({error.reason or error})"
            ) from error
    return context


def pem(path: Path, what: str, url: StoreUrl) -> bytes:
    """Reads a file of certificates or a key.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"store {url}: {what} {path} can't be read: {error.strerror}") from error


def trusted(url: StoreUrl) -> Path:
    """The file of certificates to trust: the URL's `ca`, or else the system's.

    Raises:
        ConfigError: There is none.
    """
    if url.ca is not None:
        return url.ca
    paths = (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *SYSTEM_CAS)
    for path in paths:
        if path and Path(path).is_file():
            return Path(path)
    raise ConfigError(f"store {url}: this system trusts no certificates: name a file with ca=PATH")


async def why_unreachable(
    member: Member, context: ssl.SSLContext | None, *, certificate: bool = True
) -> str:
    """Looks at a server that could not be used: what is wrong, and the remedy. Never raises.

    Args:
        member: The server.
        context: As `client_context` made it.
        certificate: Whether the context holds a client certificate; some servers answer alike to
            a bad one and to none.
    """
    host, port = member
    try:
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=host if context else None
            )
    except TimeoutError:
        return f"does not answer: is the address right, or does a firewall drop port {port}?"
    except ssl.SSLError as error:
        return refused_handshake(error, certificate=certificate)
    except OSError as error:
        return _no_connection(error, tls=context is not None)
    try:
        if context is None:
            return await _without_tls(member)
        return await _after_handshake(reader, certificate=certificate)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def refused_handshake(error: ssl.SSLError, *, certificate: bool) -> str:
    """Says what is wrong with a connection that TLS has ended, and the remedy.

    Args:
        error: What TLS said.
        certificate: As `why_unreachable` takes it.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"shows a certificate that is not trusted ({error.verify_message.rstrip('.')}): "
            f"{VERIFY_REMEDIES.get(error.verify_code, UNTRUSTED)}"
        )
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLEOFError):
        return NO_TLS
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason or "PACKET_LENGTH" in reason:
        return "does not speak TLS: leave out tls, ca, cert and key, or start it with TLS"
    return _refused_certificate(reason, certificate=certificate)


def _no_connection(error: OSError, *, tls: bool) -> str:
    if isinstance(error, socket.gaierror):
        return f"can't be found: {error.strerror}; is its name right?"
    # A name with several addresses: asyncio tells the reason of each in one text.
    of_each = [int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))]
    if error.errno is None and of_each:
        reasons = ", ".join(dict.fromkeys(map(os.strerror, of_each)))
        return f"can't be reached: {reasons}"
    if error.errno is None or (tls and error.errno == errno.ECONNRESET):
        return NO_TLS
    return f"can't be reached: {os.strerror(error.errno)}"


def _refused_certificate(reason: str, *, certificate: bool) -> str:
    if "CERTIFICATE" not in reason and not reason.endswith(("UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        return f"does not agree on TLS ({reason})"
    if not certificate or "CERTIFICATE_REQUIRED" in reason:
        return "wants a client certificate: name one with cert=PATH&key=PATH"
    return (
        f"refuses the client certificate of cert= ({reason}): it must trust who signed it, and it "
        "must not have expired"
    )


async def _without_tls(member: Member) -> str:
    if await _speaks_tls(member):
        return "speaks TLS: name its authority with ca=PATH, or write tls=true"
    return "accepts connections but does not answer: does it run, and is it this kind of store?"


async def _after_handshake(reader: asyncio.StreamReader, *, certificate: bool) -> str:
    """Waits for what follows: with TLS 1.3 a client's certificate is only refused then."""
    try:
        async with asyncio.timeout(LOOK_S):
            said = await reader.read(1)
    except TimeoutError:
        return "accepts connections but does not answer"
    except ssl.SSLError as error:
        return _refused_certificate(error.reason or str(error), certificate=certificate)
    except OSError as error:
        return f"ends the connection: {error}"
    return "does not answer in time" if said else "ends the connection: is it this kind of store?"


async def _speaks_tls(member: Member) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: this only looks whether TLS is spoken
    try:
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(*member, ssl=context)
    except ssl.SSLError as error:
        return "WRONG_VERSION" not in (error.reason or "")
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
