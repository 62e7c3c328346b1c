"""Plotly figures from plain values: one function per kind of plot.

Each strategy has a colour-blind-safe colour (Okabe and Ito's palette) and a symbol for black-and-white print.
All text from a study is escaped, since plotly interprets tags.
"""

from __future__ import annotations

import html
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from raymrc.analysis.statistics import Interval
from raymrc.analysis.tradeoffs import SizeFit
from raymrc.quantities import short_count

LOOKS = {
    "fine_tune": ("#0072B2", "circle"),
    "hard_prompt": ("#E69F00", "square"),
    "soft_prompt": ("#009E73", "diamond"),
    "frozen_soft_prompt": ("#D55E00", "triangle-up"),
    "freeze": ("#D55E00", "triangle-up"),
    "train the backbone": ("#0072B2", "circle"),
    "not enough data": ("#52606d", "circle-open"),
    "at home": ("#0072B2", "circle"),
    "at the other site": ("#E69F00", "square"),
    "over folds": ("#52606d", "circle-open"),
    "held-out notes": ("#0072B2", "diamond"),
    "frozen gap": ("#D55E00", "triangle-up"),
}
"""Strategy or other series -> colour and symbol."""

OTHER_LOOK = ("#CC79A7", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

INK, GRID = "#1f2933", "#e4e7eb"
SHADES = [[0.0, "#e6f0f8"], [0.5, "#a9cfe8"], [1.0, "#4a9bd0"]]
"""F1 from low to high, in one hue: dark text stays readable, and print keeps the order."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

ROW_PIXELS, FRAME_PIXELS = 30, 96
"""Height of one row in a plot with names on its side, and of everything around the rows."""


@dataclass(frozen=True)
class Mark:
    """One point of a plot.

    Args:
        x, y: a number, or a name on a category axis.
        low, high: ends of the interval along the axis of values; None for an open end.
        size: diameter in pixels.
        ringed: drawn with a black ring.
    """

    x: float | str
    y: float | str
    hover: str
    low: float | None = None
    high: float | None = None
    size: float = 11
    ringed: bool = False


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
    looks: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Marks of each strategy with vertical intervals.

    Args:
        log: logarithmic x axis.
        lines: connect the marks.
        ticks: of the x axis; by default plotly's.
        looks: the key of `LOOKS` for each series, where that is not its name. Series of one look differ in
            the dashes of their lines.
    """
    figure = _figure(x, y)
    seen: Counter[str] = Counter()
    for strategy, marks in by_strategy.items():
        look = (looks or {}).get(strategy, strategy)
        trace = _marks(strategy, marks, "y", "lines+markers" if lines else "markers", look)
        trace.update(line_dash=DASHES[seen[look] % len(DASHES)])
        figure.add_trace(trace)
        seen[look] += 1
    if log:
        figure.update_xaxes(
            _log_axis(float(m.x) for members in by_strategy.values() for m in members)
        )
    if ticks and (not log or _have_room(ticks)):
        values = [escape(t) if isinstance(t, str) else t for t in ticks]
        words = [v if isinstance(v, str) else f"{v:.4g}" for v in values]
        figure.update_xaxes(tickvals=values, ticktext=words)
        if isinstance(values[0], str):
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=values)
    return figure.to_plotly_json()


def dots(
    by_series: Mapping[str, Sequence[Mark]],
    names: Sequence[str],
    x: str,
    *,
    band: float | None = None,
) -> dict[str, Any]:
    """Names on the side, each with its marks and horizontal intervals.

    Args:
        by_series: by strategy, or by another key of `LOOKS`.
        names: from top to bottom.
        band: shade from -band to band, with a line at 0.
    """
    figure = _figure(x, "")
    if band is not None:
        figure.add_vrect(-band, band, fillcolor="#9fb3c8", opacity=0.25, line_width=0)
        figure.add_vline(0, line={"color": INK, "width": 1})
    for strategy, marks in by_series.items():
        figure.add_trace(_marks(strategy, marks, "x", "markers"))
    # Without an explicit order, names missing from the first trace would come last.
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[escape(name) for name in reversed(names)],
        range=[-0.6, len(names) - 0.4],
        showgrid=True,
    )
    return figure.to_plotly_json()


def height_of(rows: int) -> int:
    """Pixels of a plot with this many names on its side."""
    return FRAME_PIXELS + 24 + ROW_PIXELS * max(rows, 2)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    x: str,
    y: str,
    *,
    value_range: tuple[float, float],
    measure: str,
) -> dict[str, Any]:
    """Heat map of F1 in points; `rows` from top to bottom.

    Args:
        texts: written into the fields.
        measure: the name of a value in the hover text.
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
            hovertemplate=f"{escape(y)} %{{y}}<br>{escape(x)} %{{x}}<br>{escape(measure)} %{{text}}"
            "<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 1.0},
        )
    )
    figure.update_layout(margin_t=10, showlegend=False)
    figure.update_xaxes(type="category", showgrid=False, side="bottom")
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure.to_plotly_json()


def field(
    marks: Sequence[Mark],
    values: Sequence[float],
    x: str,
    y: str,
    log: tuple[bool, bool],
    value_range: tuple[float, float],
) -> dict[str, Any]:
    """Sampled configurations as points over two settings, coloured by F1 in points."""
    figure = _figure(x, y)
    figure.add_trace(
        go.Scatter(
            x=[mark.x for mark in marks],
            y=[mark.y for mark in marks],
            mode="markers",
            text=[escape(mark.hover).replace("\n", "<br>") for mark in marks],
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
    updates = {"x": figure.update_xaxes, "y": figure.update_yaxes}
    for (axis, update), is_log in zip(updates.items(), log, strict=True):
        if is_log:
            update(_log_axis(float(getattr(mark, axis)) for mark in marks))
    return figure.to_plotly_json()


def size_figure(
    marks: Sequence[Mark], fit: SizeFit | None, margin: float, x: str, y: str
) -> dict[str, Any]:
    """Gaps in points against parameters, with the fitted line and its interval.

    Args:
        margin: of practical equivalence, in points; shaded.
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
    return figure.to_plotly_json()


def _marks(
    name: str, marks: Sequence[Mark], along: str, mode: str, look: str | None = None
) -> go.Scatter:
    """One trace of marks with the same look and intervals along one axis."""
    colour, symbol = LOOKS.get(look or name, OTHER_LOOK)
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
        text=[escape(mark.hover).replace("\n", "<br>") for mark in marks],
        hovertemplate="%{text}<extra></extra>",
        line={"color": colour, "width": 1.8},
        marker={
            "color": colour,
            "symbol": symbol,
            "size": [mark.size for mark in marks],
            "opacity": 0.92,
            "line": {"color": colour, "width": 2}
            if symbol.endswith("open")
            else {
                "color": [INK if mark.ringed else "#ffffff" for mark in marks],
                "width": [2.2 if mark.ringed else 1 for mark in marks],
            },
        },
        **({f"error_{along}": error} if error else {}),
    )


def _figure(x: str, y: str) -> go.Figure:
    def axis(title: str) -> dict[str, Any]:
        return {
            "gridcolor": GRID,
            "linecolor": "#9aa5b1",
            "zeroline": False,
            "ticks": "outside",
            "tickcolor": "#9aa5b1",
            "automargin": True,
            "title": {"text": escape(title), "standoff": 10},
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
        xaxis=axis(x) | {"showline": True},
        yaxis=axis(y),
    )
    return figure


def _log_axis(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis with full numbers as ticks; plotly would show bare digits between decades."""
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
    """Whether ticks at exactly these values of a logarithmic axis do not overlap."""
    places = sorted(math.log10(float(tick)) for tick in ticks)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    return len(places) < 9 and min(gaps, default=1.0) > 0.1 * (places[-1] - places[0])


def _tick(value: float) -> str:
    return short_count(value) if value >= 1000 else f"{value:.3g}"


def in_points(interval: Interval) -> tuple[float | None, float | None]:
    """Ends of an interval of F1, for a `Mark`."""
    low, high = interval.low, interval.high
    return (None if low is None else 100 * low, None if high is None else 100 * high)
