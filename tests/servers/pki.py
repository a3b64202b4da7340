"""Certificates for servers and clients under test, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    cert: Path
    key: Path


class Authority:
    """Signs certificates with a key of its own; all files lie in a directory made for it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.ca = directory / "ca.pem"
        self._key = directory / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", self._key, "-out", self.ca, "-days", "2", "-subj", "/CN=test authority"),
        )

    def issue(self, name: str, *, hosts: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
        """Makes a certificate for `hosts`, good for a server and for a client."""
        made = Certificate(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-CA", self.ca, "-CAkey", self._key, "-days", "2"),
            *("-keyout", made.key, "-out", made.cert, "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={hosts}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", "extendedKeyUsage=serverAuth,clientAuth"),
        )
        return made


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
