"""Plots, as plotly draws them: one function a plot, from plain values.

Strategies have a colour of Okabe and Ito's palette, which the colour-blind can tell apart, and a symbol,
which print can. Whatever comes from a study is escaped: plotly reads tags in text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from raymrc.study.statistics import Interval, SizeFit

LOOKS = {
    "fine_tune": ("#0072B2", "circle"),
    "hard_prompt": ("#E69F00", "square"),
    "soft_prompt": ("#009E73", "diamond"),
    "frozen_soft_prompt": ("#D55E00", "triangle-up"),
}
"""Of a strategy: colour and symbol."""

OTHERS = (("#CC79A7", "cross"), ("#56B4E9", "x"), ("#000000", "star"))
"""Of strategies that came later."""

INK, GRID, FAINT = "#1f2933", "#e4e7eb", "#52606d"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

ROW, FRAME = 30, 96
"""Pixels of a row of a plot with names down its side; of what stands around the rows."""


@dataclass(frozen=True)
class Mark:
    """One point of a plot.

    Args:
        x: a figure, or a name on an axis of names.
        low, high: ends of its interval along the axis of values; None: no such end.
        size: in pixels, across.
        ringed: stands out.
    """

    x: float | str
    y: float | str
    says: str
    low: float | None = None
    high: float | None = None
    size: float = 11
    ringed: bool = False


def look(strategy: str) -> tuple[str, str]:
    """Colour and symbol."""
    return LOOKS.get(strategy) or OTHERS[sum(map(ord, strategy)) % len(OTHERS)]


def escape(text: str) -> str:
    return html.escape(text, quote=False).replace("\n", "<br>")


def scatter(
    by_strategy: Mapping[str, Sequence[Mark]],
    x: str,
    y: str,
    *,
    log: bool = False,
    lines: bool = False,
    ticks: Sequence[float | str] = (),
    y_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Marks of each strategy, with intervals upwards and downwards.

    Args:
        log: the x axis is logarithmic.
        lines: from mark to mark.
        ticks: of the x axis, where only some values are there.
    """
    figure = _figure(x, y)
    for strategy, marks in by_strategy.items():
        figure.add_trace(_marks(strategy, marks, "y", "lines+markers" if lines else "markers"))
    if log:
        figure.update_xaxes(_log_axis(_along_x(by_strategy)))
    if ticks:
        values = [escape(t) if isinstance(t, str) else t for t in ticks]
        words = [v if isinstance(v, str) else f"{v:.4g}" for v in values]
        figure.update_xaxes(tickvals=values, ticktext=words)
        if isinstance(values[0], str):
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=values)
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    return _plain(figure)


def dots(
    by_strategy: Mapping[str, Sequence[Mark]],
    names: Sequence[str],
    x: str,
    *,
    log: bool = False,
    band: float | None = None,
    zero: bool = False,
) -> dict[str, Any]:
    """Names down the side, a mark for each with its interval along.

    Args:
        by_strategy: of strategies, or of outcomes with a look of their own (`OUTCOMES`).
        names: from top to bottom.
        band: shaded from -band to band.
        zero: draws a line there.
    """
    figure = _figure(x, "")
    if band is not None:
        figure.add_vrect(-band, band, fillcolor="#9fb3c8", opacity=0.25, line_width=0)
    if zero:
        figure.add_vline(0, line={"color": INK, "width": 1})
    for strategy, marks in by_strategy.items():
        figure.add_trace(_marks(strategy, marks, "x", "markers"))
    # Names that no mark of the first trace has would else be put last.
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[escape(name) for name in reversed(names)],
        range=[-0.6, len(names) - 0.4],
        showgrid=True,
    )
    if log:
        figure.update_xaxes(_log_axis(_along_x(by_strategy)))
    return _plain(figure)


OUTCOMES = {
    "freeze": ("#D55E00", "triangle-up"),
    "train the backbone": ("#0072B2", "circle"),
    "not enough data": ("#52606d", "circle-open"),
    "at home": ("#0072B2", "circle"),
    "there": ("#E69F00", "square"),
    "over folds": ("#52606d", "circle-open"),
}
"""Looks of what is not a strategy."""


def height_of(rows: int) -> int:
    """Of a plot with so many names down its side."""
    return FRAME + 24 + ROW * max(rows, 2)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    x: str,
    y: str,
    *,
    value_range: tuple[float, float],
    says: str,
) -> dict[str, Any]:
    """A field of F1 in points; `rows` from top to bottom.

    Args:
        texts: what is written into each.
        says: what a value is, for whoever points at it.
    """
    figure = _figure(x, y)
    low, high = value_range
    figure.add_trace(
        go.Heatmap(
            x=[escape(name) for name in columns],
            y=[escape(name) for name in rows],
            z=[list(row) for row in values],
            text=[[escape(text) for text in row] for row in texts],
            texttemplate="%{text}",
            zmin=low,
            zmax=high if high > low else low + 1,
            colorscale="Cividis",
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate=(
                f"{escape(y)} %{{y}}<br>{escape(x)} %{{x}}<br>{escape(says)} %{{text}}<extra></extra>"
            ),
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 1.0},
        )
    )
    figure.update_xaxes(type="category", showgrid=False, side="bottom")
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return _plain(figure)


def field(
    marks: Sequence[Mark],
    values: Sequence[float],
    x: str,
    y: str,
    log: tuple[bool, bool],
    value_range: tuple[float, float],
) -> dict[str, Any]:
    """Points of a search that drew its settings, coloured by F1 in points."""
    figure = _figure(x, y)
    figure.add_trace(
        go.Scatter(
            x=[mark.x for mark in marks],
            y=[mark.y for mark in marks],
            mode="markers",
            text=[escape(mark.says) for mark in marks],
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": list(values),
                "cmin": value_range[0],
                "cmax": value_range[1],
                "colorscale": "Cividis",
                "showscale": True,
                "colorbar": {"thickness": 10, "outlinewidth": 0},
                "size": [15 if mark.ringed else 10 for mark in marks],
                "line": {"color": INK, "width": [3 if mark.ringed else 0.5 for mark in marks]},
            },
        )
    )
    for axes, is_log in zip((figure.update_xaxes, figure.update_yaxes), log, strict=True):
        if is_log:
            axes(type="log")
    return _plain(figure)


def by_size(
    marks: Sequence[Mark], fit: SizeFit | None, margin: float, x: str, y: str
) -> dict[str, Any]:
    """Gaps in points against parameters, with the fitted line and its interval.

    Args:
        margin: of practical equivalence, in points.
    """
    figure = _figure(x, y)
    figure.add_hrect(-margin, margin, fillcolor="#9fb3c8", opacity=0.25, line_width=0)
    if fit is not None:
        low, high = math.log10(fit.smallest), math.log10(fit.largest)
        steps = [10 ** (low + (high - low) * i / 40) for i in range(41)]
        line = [fit.at(size) for size in steps]
        for end, fill in (("high", None), ("low", "tonexty")):
            figure.add_trace(
                go.Scatter(
                    x=steps,
                    y=[100 * getattr(interval, end) for _, interval in line],
                    mode="lines",
                    line={"width": 0},
                    fill=fill,
                    fillcolor="rgba(213,94,0,0.14)",
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=[100 * value for value, _ in line],
                mode="lines",
                line={"color": "#D55E00", "dash": "dash", "width": 2},
                name="fitted, with its 95 % interval",
                hoverinfo="skip",
            )
        )
    figure.add_trace(_marks("frozen gap", marks, "y", "markers"))
    figure.update_xaxes(type="log")
    return _plain(figure)


# --- shared ---------------------------------------------------------------------------------------


def _marks(name: str, marks: Sequence[Mark], along: str, mode: str) -> go.Scatter:
    """One trace: marks of one look, their intervals along one axis."""
    colour, symbol = OUTCOMES.get(name) or look(name)
    values = [mark.x if along == "x" else mark.y for mark in marks]
    error = None
    if any(mark.low is not None or mark.high is not None for mark in marks):
        pairs = list(zip(marks, values, strict=True))
        error = {
            "type": "data",
            "symmetric": False,
            "array": [0 if m.high is None else m.high - float(v) for m, v in pairs],
            "arrayminus": [0 if m.low is None else float(v) - m.low for m, v in pairs],
            "color": colour,
            "thickness": 1.4,
            "width": 4,
        }
    return go.Scatter(
        x=[escape(m.x) if isinstance(m.x, str) else m.x for m in marks],
        y=[escape(m.y) if isinstance(m.y, str) else m.y for m in marks],
        mode=mode,
        name=escape(name),
        text=[escape(mark.says) for mark in marks],
        hovertemplate="%{text}<extra></extra>",
        line={"color": colour, "width": 1.8},
        marker={
            "color": colour,
            "symbol": symbol,
            "size": [mark.size for mark in marks],
            "opacity": 0.92,
            "line": {
                "color": [INK if mark.ringed else "#ffffff" for mark in marks]
                if not symbol.endswith("open")
                else colour,
                "width": [2.2 if mark.ringed else 1 for mark in marks]
                if not symbol.endswith("open")
                else 2,
            },
        },
        **({f"error_{along}": error} if error else {}),
    )


def _figure(x: str, y: str) -> go.Figure:
    axis = {
        "gridcolor": GRID,
        "linecolor": "#9aa5b1",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "#9aa5b1",
        "automargin": True,
        "title": {"standoff": 10},
    }
    figure = go.Figure()
    figure.update_layout(
        template=None,
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemsizing": "constant",
        },
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": "#9aa5b1", "align": "left"},
        hovermode="closest",
        showlegend=True,
        xaxis=axis | {"title": {"text": escape(x), "standoff": 10}, "showline": True},
        yaxis=axis | {"title": {"text": escape(y), "standoff": 10}},
    )
    return figure


def _along_x(by_strategy: Mapping[str, Sequence[Mark]]) -> list[float]:
    return [float(mark.x) for marks in by_strategy.values() for mark in marks]


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """Within one magnitude plotly writes bare digits (2, 5) that read as other numbers."""
    there = [value for value in values if value > 0]
    if not there or max(there) / min(there) >= 300:
        return {"type": "log", "dtick": 1}
    low, high = min(there) / 1.3, max(there) * 1.3
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 3)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def _plain(figure: go.Figure) -> dict[str, Any]:
    return figure.to_plotly_json()


def in_points(interval: Interval) -> tuple[float | None, float | None]:
    """Ends of an interval of F1, for a mark."""
    low, high = interval.low, interval.high
    return (None if low is None else 100 * low, None if high is None else 100 * high)
