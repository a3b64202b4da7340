"""What proves a host to the others."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from pyvxlan.daemon.errors import NetError
from pyvxlan.daemon.identity import FILE, ensure_identity

HOST_ID = "a" * 32


def test_an_identity_is_made_once_and_is_roots_alone(tmp_path: Path) -> None:
    made = ensure_identity(tmp_path, HOST_ID)
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert ensure_identity(tmp_path, HOST_ID) == made
    assert ensure_identity(tmp_path / "..", HOST_ID).certificate != made.certificate


def test_what_is_published_holds_no_key(tmp_path: Path) -> None:
    made = ensure_identity(tmp_path, HOST_ID)
    text = ssl.DER_cert_to_PEM_cert(made.certificate)
    assert "PRIVATE" not in text
    assert text.split("\n")[1] in made.path.read_text()


@pytest.mark.parametrize("content", ["", "nonsense", "key of another"])
def test_a_file_that_can_not_be_used_is_made_anew(tmp_path: Path, content: str) -> None:
    made = ensure_identity(tmp_path, HOST_ID)
    if content == "key of another":
        (tmp_path / "other").mkdir()
        other = ensure_identity(tmp_path / "other", HOST_ID).path.read_text()
        content = other[: other.index(ssl.PEM_HEADER)] + ssl.DER_cert_to_PEM_cert(made.certificate)
    made.path.write_text(content)
    again = ensure_identity(tmp_path, HOST_ID)
    assert again.certificate != made.certificate
    assert ensure_identity(tmp_path, HOST_ID) == again


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(NetError, match=r"peer\.pem can't be read"):
        ensure_identity(tmp_path, HOST_ID)
