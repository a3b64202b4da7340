"""What proves to other hosts that this one is itself: a key, and a certificate of its own making.

Nobody signs certificates: each host publishes its own in its host record, and whoever reads the
store knows which certificate a host has. So the certificate has no end of its own, and names
nothing that anybody relies on.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyvxlan.daemon.errors import NetError
from pyvxlan.daemon.local import write_file

log = logging.getLogger(__name__)

FILE = "peer.pem"
NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""What X.509 has for a certificate without an end (RFC 5280, section 4.1.2.5)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A file with this host's private key and certificate, and the certificate in DER form."""

    path: Path
    certificate: bytes


def ensure_identity(state_dir: Path, host_id: str) -> Identity:
    """Gives this host's identity; makes one if there is none, or none that can be used.

    The file is root's alone (0600) and appears as a whole; the key is nowhere else.

    Raises:
        NetError: The file can't be read or written.
    """
    path = state_dir / FILE
    found = _load(path)
    if found is None:
        write_file(path, _make(host_id))
        log.info("certificate made path=%s", path)
        found = _load(path)
    if found is None:
        raise NetError(f"{path} was made and can't be read: repair the file system")
    return found


def _load(path: Path) -> Identity | None:
    """Reads the file; None if there is none, or no key with its certificate in it."""
    try:
        text = path.read_text(encoding="ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, password="")
        certificate = ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) :])
    except FileNotFoundError:
        return None
    except (ssl.SSLError, ValueError) as error:
        log.warning("certificate is made anew path=%s cause=%s", path, error)
        return None
    except OSError as error:
        raise NetError(f"{path} can't be read: {error.strerror}; repair the file system") from error
    return Identity(path, certificate)


def _make(host_id: str) -> bytes:
    """Makes a key and its certificate, both in PEM form."""
    # What only the first start of a host needs would slow down each.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host_id)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))  # Clocks may be wrong.
        .not_valid_after(NEVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
