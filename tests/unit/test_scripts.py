"""The scripts of a checkout: what they do before they build anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def bash(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_settings_of_the_caller_do_not_reach_the_daemons_of_the_demo() -> None:
    """The daemon refuses variables that are no settings, such as PYVXLAN_VENV."""
    done = bash(
        "-c",
        f"source {SCRIPTS / 'lib.sh'}; echo $VENV; env | grep ^PYVXLAN",
        PYVXLAN_VENV="/elsewhere",
        PYVXLAN_PORT="4790",
    )
    assert done.stdout.splitlines() == ["/elsewhere", "PYVXLAN_CONFIG=/dev/null"]


def test_colours_are_for_terminals() -> None:
    done = bash("-c", f"source {SCRIPTS / 'lib.sh'}; say building; fail broken")
    assert (done.returncode, done.stdout) == (1, "\n==> building\n")
    assert done.stderr == "\npyvxlan: broken\n"


@pytest.mark.parametrize("args", [("--keep", "extra"), ("--dwon",), ("", "")])
def test_wrong_use_of_the_demo_does_nothing(args: tuple[str, ...]) -> None:
    done = bash(SCRIPTS / "demo", *args)
    assert done.returncode != 0
    assert "scripts/demo [--keep | --down]" in done.stderr
    assert done.stdout == ""


def test_help_of_the_demo_names_its_options() -> None:
    printed = bash(SCRIPTS / "demo", "--help").stdout
    assert "--keep" in printed
    assert "--down" in printed


def test_unknown_step_of_the_tests_is_named() -> None:
    done = bash(SCRIPTS / "test", "pyhton")
    assert done.returncode != 0
    assert "pyhton" in done.stderr
    assert "python" in done.stderr
