"""The pages: their links lead somewhere, and they name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from pyvxlan.daemon.cli import cli

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted([REPO / "README.md", REPO / "CHANGELOG.md", *(REPO / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = {page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    targets |= {REPO / named for named in re.findall(r"`(docs/\w+\.md)`", text)}
    assert [str(target) for target in targets if not target.exists()] == []


def test_design_names_every_module_of_the_daemon() -> None:
    text = (REPO / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (REPO / "daemon").glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text} == set()


def commands(group: click.Group, path: str = "pyvxlan") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{path} {name}")
        else:
            found[f"{path} {name}"] = command
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_pages_exist_with_their_options(page: Path) -> None:
    known = commands(cli)
    for line in re.findall(r"^    (pyvxlan .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = line.partition(" #")[0].partition(" -- ")[0].split()
        name = " ".join(words[:3]) if " ".join(words[:3]) in known else " ".join(words[:2])
        options = {option for param in known[name].params for option in param.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
