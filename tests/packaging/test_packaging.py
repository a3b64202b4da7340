"""One distribution: wheel, sdist and editable install give the same working thing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging
REPO = Path(__file__).resolve().parents[2]
PROBE = """
import pyvxlan, pyvxlan.daemon.main, pyvxlan.daemon.cli, pyvxlan.forwarder, importlib.metadata as m
frame = bytes(range(60))
assert bytes(pyvxlan.decap(pyvxlan.encap(frame, 42))[1]) == frame
assert {p.name for p in m.distribution("pyvxlan").entry_points} == {"pyvxlan", "pyvxlan-daemon"}
print(m.version("pyvxlan"))
"""


def run(*words: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built by the build backend's own tool."""
    out = tmp_path_factory.mktemp("dist")
    run("maturin", "build", "--release", "--locked", "--sdist", "--out", out, cwd=REPO)
    return out


def sources() -> set[str]:
    """What must be in every distribution: all files of the library and of the daemon."""
    kept = set()
    for top, prefix in ((REPO / "pyvxlan", "pyvxlan"), (REPO / "daemon", "pyvxlan/daemon")):
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in files:
                if not name.endswith((".so", ".pyc")):
                    kept.add(f"{prefix}/{(Path(folder) / name).relative_to(top)}")
    return kept


def test_wheel_holds_every_file_of_library_and_daemon(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert sources() <= names
    assert not [name for name in names if name.startswith("daemon/")]
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_uses_the_stable_abi(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".abi3.so")]


def test_sdist_holds_all_that_a_build_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert sources() <= names
    assert {"Cargo.toml", "Cargo.lock", "rust/bindings/Cargo.toml", "LICENSE", "README.md"} <= names


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_every_kind_of_install_gives_the_same_working_thing(
    built: Path, tmp_path: Path, kind: str
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    env = {
        key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    env["CARGO_TARGET_DIR"] = str(REPO / "target")
    match kind:
        case "wheel":
            what: list[object] = [next(built.glob("*.whl"))]
        case "sdist":
            what = [next(built.glob("*.tar.gz"))]
        case _:
            copy = tmp_path / "checkout"
            shutil.copytree(
                REPO,
                copy,
                symlinks=True,
                ignore=shutil.ignore_patterns(
                    "target", ".venv", ".git", "*.so", "__pycache__", ".*_cache"
                ),
            )
            what = ["--editable", copy]
    run(python, "-m", "pip", "install", "--quiet", *what, cwd=tmp_path, env=env)
    printed = run(python, "-c", PROBE, cwd=tmp_path, env=env)
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert printed.strip() == version
    for script in ("pyvxlan", "pyvxlan-daemon"):
        assert version in run(home / "bin" / script, "--version", cwd=tmp_path, env=env)
    if kind == "wheel":
        # Python looks into the current directory first; a checkout has no extension.
        for name in ("pyvxlan", "daemon"):
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(REPO / name, tmp_path / "here" / name, symlinks=True, ignore=ignored)
        assert run(python, "-c", PROBE, cwd=tmp_path / "here", env=env) == printed


def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def python_for_everybody() -> str:
    """An interpreter that other users may run; one in root's home is none."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            if as_nobody(candidate, "-c", "").returncode == 0:
                return candidate
        except PermissionError:
            continue
    pytest.fail("no Python here that another user than root may run")


def test_library_works_without_root_from_the_wheel_alone(built: Path) -> None:
    """Only running the daemon needs root; the library needs no dependency either."""
    (wheel,) = built.glob("*.whl")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory)
        probe = (
            f"import sys; sys.path.insert(0, {directory!r}); import pyvxlan;"
            "print(len(pyvxlan.encap(bytes(60), 1)))"
        )
        done = as_nobody(python_for_everybody(), "-c", probe)
    assert done.stdout == "68\n", done.stderr


def test_versions_agree() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    cargo = tomllib.loads((REPO / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert project == cargo
    assert re.search(
        rf"^## {re.escape(project)}", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE
    )
