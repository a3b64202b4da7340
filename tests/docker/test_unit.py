"""The systemd unit, as systemd reads it beside Docker's own; nothing is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pyvxlan.daemon import doctor
from tests.netns.world import command

pytestmark = pytest.mark.docker

ASSET = Path(doctor.__file__).parent / "assets" / doctor.UNIT
INSTALLED = Path("/lib/systemd/system")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with the units of this machine, Docker's among them, and ours."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for unit in (doctor.DOCKER_UNIT, "docker.socket", "multi-user.target"):
        shutil.copy(INSTALLED / unit, units / unit)
    ours = tmp_path / "etc/systemd/system"
    ours.mkdir(parents=True)
    shutil.copy(ASSET, ours / doctor.UNIT)
    return tmp_path


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = shutil.copy(ASSET, tmp_path / doctor.UNIT)
    done = command("systemd-analyze", "verify", "--man=no", unit)
    assert doctor.UNIT not in done.stderr


def test_unit_comes_with_docker_and_before_it(root: Path) -> None:
    command("systemctl", f"--root={root}", "enable", doctor.UNIT)
    wants = (root / "etc/systemd/system").glob("*.wants/*")
    assert {str(want.relative_to(want.parents[1])) for want in wants} == {
        f"docker.service.wants/{doctor.UNIT}",
        f"multi-user.target.wants/{doctor.UNIT}",
    }
    order = [line for line in ASSET.read_text().splitlines() if line.startswith("Before=")]
    assert order == [f"Before={doctor.DOCKER_UNIT}"]
