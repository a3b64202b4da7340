"""What the tests' own servers leave behind: nothing, whatever becomes of the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.servers.process import Server


class Silent(Server):
    """A server that never serves."""

    start_s = 0.2
    pid = 0

    @property
    def url(self) -> str:
        return "silent://"

    def words(self) -> Sequence[str]:
        return ("sleep", "3600")

    def ready(self) -> bool:
        assert self.process is not None
        self.pid = self.process.pid
        return False


def test_server_that_does_not_serve_is_ended(tmp_path: Path) -> None:
    server = Silent(tmp_path)
    with pytest.raises(AssertionError, match="does not serve"), server:
        pass
    assert server.pid
    assert not Path(f"/proc/{server.pid}").exists()
