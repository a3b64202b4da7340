"""Grafana's dashboards and Prometheus' rules, as far as they go without either running."""

from __future__ import annotations

import enum
import json
import re
import shutil
import subprocess
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.boards import BOARDS, Board, Panel
from grafana.build import FOLDER, build
from tests.unit.test_metrics import READING, page

GRAFANA = FOLDER.parent
RULES = (GRAFANA / "prometheus" / "rules.yml").read_text("utf-8")


def misfits(value: object, hint: Any, where: str = "") -> Iterator[str]:
    """Names what is not of the type that Grafana's SDK says, down to the last field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        if all([*misfits(value, one, where)] for one in arguments):
            yield f"{where}: {value!r} is not {hint}"
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{where}: {value!r} is none of {arguments}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
        else:
            for number, item in enumerate(value):
                yield from misfits(item, arguments[0], f"{where}[{number}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{where}: {value!r} is no map"
    elif hint is float:
        if type(value) not in {int, float}:
            yield f"{where}: {value!r} is no number"
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [one.value for one in hint]:
            yield f"{where}: {value!r} is none of {list(hint)}"
    elif hint in {bool, int, str, type(None)}:
        if type(value) is not hint:
            yield f"{where}: {value!r} is no {hint}"
    elif isinstance(hint, type) and hint is not object and not isinstance(value, hint):
        yield f"{where}: {value!r} is no {hint}"
    elif type(value).__module__.startswith("grafana_foundation_sdk"):
        for name, field in typing.get_type_hints(type(value)).items():
            yield from misfits(getattr(value, name), field, f"{where}.{name}")


def complaints(document: dict[str, Any]) -> list[str]:
    """What Grafana's published types say against a dashboard."""
    register_default_plugins()
    read = Dashboard.from_json(document)
    back = json.loads(json.dumps(read, cls=JSONEncoder))
    unknown = [] if back == document else ["it holds what Grafana's types do not know"]
    return [*misfits(read, Dashboard), *unknown]


def document(board: Board) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{board.uid}.json").read_text("utf-8"))
    return found


def panels() -> Iterator[tuple[Board, Panel]]:
    for board in BOARDS:
        for row in board.rows:
            for panel in row.panels:
                yield board, panel


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_committed_dashboard_is_what_the_code_makes(board: Board) -> None:
    assert (FOLDER / f"{board.uid}.json").read_text("utf-8") == build(board), (
        "run: python -m grafana.build"
    )


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_dashboard_is_as_grafanas_types_say(board: Board) -> None:
    assert complaints(document(board)) == []


def test_grafanas_types_refuse_what_is_wrong() -> None:
    (board, *_) = BOARDS
    unknown, wrong, deep = document(board), document(board), document(board)
    unknown["panels"][1]["colour"] = "red"
    wrong["title"] = 7
    deep["panels"][1]["targets"][0]["expr"] = ["up"]
    for broken in (unknown, wrong, deep):
        assert complaints(broken) != []


def test_every_panel_has_words_a_unit_and_a_place_of_its_own() -> None:
    assert [panel.title for _, panel in panels() if not (panel.text and panel.unit)] == []
    for board in BOARDS:
        titles = [panel.title for row in board.rows for panel in row.panels]
        assert len(set(titles)) == len(titles)
        shown = document(board)["panels"]
        assert len({panel["id"] for panel in shown}) == len(shown)
        taken = [
            (x, y)
            for place in (panel["gridPos"] for panel in shown)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(taken)) == len(taken)


async def test_dashboards_and_rules_name_metrics_that_there_are() -> None:
    exposed = set(re.findall(r"^([a-z_]+)[ {]", await page(READING), re.MULTILINE))
    drawn = " ".join(query.expr for _, panel in panels() for query in panel.queries)
    used = set(re.findall(r"(?<![\w:])(?:pyvxlan|process)_\w+", f"{drawn} {RULES}"))
    assert used - exposed == set()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}
    assert {name for name in shown if name.startswith("pyvxlan_")} - families == set()


def promtool(*words: str | Path) -> None:
    found = shutil.which("promtool")
    assert found, "install the package prometheus, which brings promtool"
    done = subprocess.run([found, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_do_what_their_tests_say() -> None:
    promtool("test", "rules", GRAFANA / "prometheus" / "rules_test.yml")


def test_example_configuration_is_valid() -> None:
    promtool("check", "config", GRAFANA / "prometheus" / "prometheus.yml")


def test_every_alert_is_tested_quiet_and_firing() -> None:
    tests = (GRAFANA / "prometheus" / "rules_test.yml").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", RULES)
    assert len(alerts) > 10
    for alert in alerts:
        assert f"alertname: {alert}, exp_alerts: []" in tests
        assert f'ALERTS{{alertname="{alert}", alertstate="firing"' in tests
