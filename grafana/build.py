"""Writes the dashboards as Grafana's JSON: `python -m grafana.build`.

Grafana's own SDK for Grafana 11.6 makes it, so that names and types are Grafana's. The files are
committed; a test builds them again and compares.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TypeAlias

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)

from grafana.boards import BOARDS, HOST, Board, Panel

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "pyvxlan"
Builder: TypeAlias = timeseries.Panel | stat.Panel


def build(board: Board) -> str:
    """Gives a dashboard as JSON text."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .link(
            dashboard.DashboardLink("pyvxlan")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .keep_time(True)
            .include_vars(True)
        )
    )
    queries = {
        "host": ("Host", "label_values(pyvxlan_build_info, instance)"),
        "network": ("Network", f"label_values(pyvxlan_endpoints{{{HOST}}}, network)"),
    }
    for name in board.variables:
        label, query = queries[name]
        made = made.with_variable(
            dashboard.QueryVariable(name)
            .label(label)
            .query(query)
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .current(VariableOption(text="All", value="$__all"))
        )
    ids = itertools.count(1)
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            made = made.with_panel(_panel(panel).id(next(ids)))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _panel(panel: Panel) -> Builder:
    made = _stat() if panel.kind == "stat" else _timeseries(panel)
    made.title(panel.title).description(panel.text).unit(panel.unit).datasource(SOURCE)
    made.span(panel.width).height(4 if panel.kind == "stat" else 8).min(0)
    steps = [Threshold(color="green", value=None)]
    if panel.warn is not None:
        steps.append(Threshold(color="orange", value=panel.warn))
    if panel.alarm is not None:
        steps.append(Threshold(color="red", value=panel.alarm))
    made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    for number, query in enumerate(panel.queries):
        made.with_target(
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id("ABCDEFG"[number])
        )
    return made


def _stat() -> stat.Panel:
    return stat.Panel().reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))


def _timeseries(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .fill_opacity(20 if panel.stacked else 5)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if panel.stacked:
        made.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if panel.alarm is not None:
        made.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return made


def main() -> None:
    """Writes all of them."""
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(build(board), "utf-8")


if __name__ == "__main__":
    main()
