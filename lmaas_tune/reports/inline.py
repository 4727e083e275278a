"""Sections of a report as HTML for a notebook's cell: no script, no style sheet, no packages.

Text and axes take the colour of the page, so that they are seen on light and on dark ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from lmaas_tune.reports.html import Figure, Section, Series, Table

Points: TypeAlias = "list[tuple[float, float]]"

COLOURS = ("#2f7fc1", "#d5652b", "#1d9270", "#b75bb0", "#9b7a14", "#d8485f", "#75818d", "#2f8f99")
"""Of the curves: each is seen on white and on black."""

_WIDTH, _HEIGHT = 640, 270  # of a figure, and of the margins of its plot
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 42
_MOST_POINTS = 250  # of a curve
_MUTED, _CELL = "opacity:0.75", "padding:0.25em 0.7em;vertical-align:top;white-space:pre-line"


def inline(sections: Sequence[Section]) -> str:
    """The sections, their folded tables left out."""
    return f"<div>{''.join(part for section in sections for part in _parts(section))}</div>"


def _parts(section: Section) -> Iterator[str]:
    yield f'<p style="margin:0.6em 0 0.2em"><b>{escape(section.title)}</b></p>'
    yield from (f'<p style="margin:0.2em 0">{escape(text)}</p>' for text in section.text)
    yield from map(_figure, section.figures)
    yield from (_table(table) for table in section.tables if not table.folded)


def _table(table: Table) -> str:
    aligned = ["right" if column.is_number else "left" for column in table.columns]
    rows = [("th", [column.head for column in table.columns])]
    rows += [("td", [column.cell(line) for column in table.columns]) for line in table.lines]
    html = "".join(
        "<tr>"
        + "".join(
            f'<{tag} style="text-align:{side};{_CELL}">{escape(cell)}</{tag}>'
            for side, cell in zip(aligned, cells, strict=True)
        )
        + "</tr>"
        for tag, cells in rows
    )
    note = f'<p style="max-width:46em;{_MUTED}"><small>{escape(table.note)}</small></p>'
    below = note if table.note else ""
    return f'{_caption(table.caption)}<table style="margin-left:0">{html}</table>{below}'


def _caption(text: str) -> str:
    return f'<p style="margin:0.6em 0 0.2em;{_MUTED}">{escape(text)}</p>'


def _figure(figure: Figure) -> str:
    """The lines of a figure as SVG, with a legend below."""
    curves = [_Curve(series, COLOURS[i % len(COLOURS)]) for i, series in enumerate(figure.series)]
    points = [point for curve in curves for point in (*curve.points, *curve.band)]
    if figure.target is not None and points:
        points.append((points[0][0], figure.target))
    if not points:
        return ""
    plane = _Plane(*zip(*points, strict=True))
    target = "" if figure.target is None else plane.marked(figure.target)
    drawn = "".join(curve.drawn(plane) for curve in curves)
    legend = "".join(
        f'<span style="white-space:nowrap;margin-right:1.2em"><span style="color:{curve.colour}">'
        f"&#9632;</span> {escape(curve.series.name)}</span> "
        for curve in curves
    )
    return (
        f'{_caption(figure.caption)}<svg role="img" aria-label="{escape(figure.caption)}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" style="width:100%;max-width:{_WIDTH}px" font-size="12" '
        f'fill="currentColor">{plane.axes(figure.x, figure.y)}{target}{drawn}</svg>'
        f'<p style="margin:0.2em 0">{legend}</p>'
    )


class _Curve:
    """A series, with the points that are drawn."""

    def __init__(self, series: Series, colour: str) -> None:
        self.series, self.colour = series, colour
        self.points = self._points(series.y)
        low, high = (self._points(edge or ()) for edge in (series.low, series.high))
        self.band = low + high[::-1]

    def _points(self, heights: Sequence[float]) -> Points:
        finite = [(x, y) for x, y in zip(self.series.x, heights, strict=False) if math.isfinite(y)]
        count = min(len(finite), _MOST_POINTS)
        kept = [finite[i] for i in np.linspace(0, len(finite) - 1, count).round().astype(int)]
        return _stepped(kept) if self.series.stepped else kept

    def drawn(self, plane: _Plane) -> str:
        paint = f'fill="{self.colour}"'
        if self.series.dots:
            places = [plane.place(*point).split(",") for point in self.points]
            return "".join(f'<circle cx="{x}" cy="{y}" r="3" {paint}/>' for x, y in places)
        band = f'<polygon points="{plane.path(self.band)}" {paint} opacity="0.18"/>'
        line = (
            f'<polyline points="{plane.path(self.points)}" fill="none" stroke="{self.colour}" '
            'stroke-width="2"/>'
        )
        return band * bool(self.band) + line


def _stepped(points: Points) -> Points:
    """Points between which a value holds until the next one."""
    corners = [(x, y) for (_, y), (x, _) in pairwise(points)]
    both = [point for pair in zip(points, corners, strict=False) for point in pair]
    return [*both, *points[-1:]]


class _Plane:
    """The plot, from numbers to places.

    Args:
        xs: All horizontal numbers that are drawn.
        ys: All heights.
    """

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._xs, self._ys = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
        self._x, self._y = (min(xs), max(xs)), (min(ys), max(ys))

    def place(self, x: float, y: float) -> str:
        """The place of a point, as ``x,y``."""
        right = _share(x, self._x) * (_WIDTH - _LEFT - _RIGHT)
        up = _share(y, self._y) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{_LEFT + right:.1f},{_HEIGHT - _BOTTOM - up:.1f}"

    def path(self, points: Points) -> str:
        """The places of points."""
        return " ".join(self.place(*point) for point in points)

    def marked(self, height: float) -> str:
        """A dotted line at a height."""
        return self._level(height, 'stroke-dasharray="2 4" opacity="0.8"')

    def _level(self, height: float, style: str) -> str:
        y = self.place(self._x[0], height).split(",")[1]
        return (
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="currentColor" '
            f"{style}/>"
        )

    def axes(self, x: str, y: str) -> str:
        """The numbers at the axes, their titles, and a thin line at each height."""
        parts = []
        for tick in self._ys:
            at = self.place(self._x[0], tick).split(",")[1]
            parts.append(self._level(tick, 'opacity="0.2"'))
            parts.append(
                f'<text x="{_LEFT - 6}" y="{at}" dy="0.35em" text-anchor="end">{tick:g}</text>'
            )
        for tick in self._xs:
            at = self.place(tick, self._y[0]).split(",")[0]
            parts.append(
                f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
            )
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(
            f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
            f'<text transform="translate(14 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(y)}</text>'
        )
        return "".join(parts)


def _share(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return 0.5 if high == low else (value - low) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two numbers, both included: three to eight, or one."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(step * many for many in (5, 2, 1) if (high - low) / (step * many) >= 3)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
