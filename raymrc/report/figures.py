"""Plots, as plotly draws them: one function a plot, from plain values.

Strategies have a colour of Okabe and Ito's palette, which the colour-blind can tell apart, and a symbol,
which print can. Whatever comes from a study is escaped: plotly reads tags in text.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from raymrc.analysis.statistics import Interval, SizeFit
from raymrc.quantities import short_count

LOOKS = {
    "fine_tune": ("#0072B2", "circle"),
    "hard_prompt": ("#E69F00", "square"),
    "soft_prompt": ("#009E73", "diamond"),
    "frozen_soft_prompt": ("#D55E00", "triangle-up"),
}
"""Of a strategy: colour and symbol."""

OTHERS = (("#CC79A7", "cross"), ("#56B4E9", "x"), ("#000000", "star"))
"""Of strategies that came later."""

INK, GRID = "#1f2933", "#e4e7eb"
SHADES = [[0.0, "#e6f0f8"], [0.5, "#a9cfe8"], [1.0, "#4a9bd0"]]
"""Of F1, from low to high: one hue, dark text is readable on all of it, and print keeps the order."""
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
    return html.escape(text, quote=False)


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
        figure.update_xaxes(_log_axis(float(m.x) for of in by_strategy.values() for m in of))
    if ticks and (not log or _have_room(ticks)):
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
        figure.update_xaxes(_log_axis(float(m.x) for of in by_strategy.values() for m in of))
    return _plain(figure)


OUTCOMES = {
    "freeze": ("#D55E00", "triangle-up"),
    "train the backbone": ("#0072B2", "circle"),
    "not enough data": ("#52606d", "circle-open"),
    "at home": ("#0072B2", "circle"),
    "at the other site": ("#E69F00", "square"),
    "over folds": ("#52606d", "circle-open"),
    "held-out notes": ("#0072B2", "diamond"),
    "frozen gap": ("#D55E00", "triangle-up"),
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
            textfont={"color": INK},
            zmin=low,
            zmax=high if high > low else low + 1,
            colorscale=SHADES,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate=f"{escape(y)} %{{y}}<br>{escape(x)} %{{x}}<br>{escape(says)} %{{text}}"
            "<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 1.0},
        )
    )
    figure.update_layout(margin_t=10, showlegend=False)
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
            text=[escape(mark.says).replace("\n", "<br>") for mark in marks],
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": list(values),
                "cmin": value_range[0],
                "cmax": value_range[1],
                "colorscale": SHADES,
                "showscale": True,
                "colorbar": {"thickness": 10, "outlinewidth": 0},
                "size": [15 if mark.ringed else 10 for mark in marks],
                "line": {"color": INK, "width": [3 if mark.ringed else 0.5 for mark in marks]},
            },
        )
    )
    figure.update_layout(margin_t=10, showlegend=False)
    of_axes = [[float(getattr(mark, axis)) for mark in marks] for axis in ("x", "y")]
    updates = (figure.update_xaxes, figure.update_yaxes)
    for axes, places, is_log in zip(updates, of_axes, log, strict=True):
        if is_log:
            axes(_log_axis(places))
    return _plain(figure)


def size_figure(
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
    figure.update_xaxes(_log_axis(float(mark.x) for mark in marks))
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
        text=[escape(mark.says).replace("\n", "<br>") for mark in marks],
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


def _log_axis(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis whose ticks are whole numbers: plotly's own are bare digits between decades."""
    found = [value for value in values if value > 0]
    if not found:
        return {"type": "log"}
    low, high = math.log10(min(found)), math.log10(max(found))
    steps = (1, 2, 5) if high - low < 1.7 else (1,)
    every = max(1, round((high - low) / 6)) if steps == (1,) else 1
    decades = range(math.floor(low) - 1, math.ceil(high) + 2, every)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    pad = max(0.08 * (high - low), 0.1)
    ends = [low - pad, high + pad]
    ticks = [tick for tick in ticks if ends[0] <= math.log10(tick) <= ends[1]]
    return {"type": "log", "range": ends, "tickvals": ticks, "ticktext": [_tick(t) for t in ticks]}


def _have_room(ticks: Sequence[float | str]) -> bool:
    """Whether ticks at just these values of a logarithmic axis would not run into each other."""
    places = sorted(math.log10(float(tick)) for tick in ticks)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    return len(places) < 9 and min(gaps, default=1.0) > 0.1 * (places[-1] - places[0])


def _tick(value: float) -> str:
    return short_count(value) if value >= 1000 else f"{value:.3g}"


def _plain(figure: go.Figure) -> dict[str, Any]:
    return figure.to_plotly_json()


def in_points(interval: Interval) -> tuple[float | None, float | None]:
    """Ends of an interval of F1, for a mark."""
    low, high = interval.low, interval.high
    return (None if low is None else 100 * low, None if high is None else 100 * high)
