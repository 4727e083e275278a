"""Reports as one HTML file that needs no network: tables, curves, and what draws them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmaas_tune.errors import StorageError
from lmaas_tune.files import write_whole
from lmaas_tune.lab.extra import need
from lmaas_tune.versions import versions

NONE = "-"
"""Stands where there is no number."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Their heads; the first column names its row.
        rows: Cells as text.
        numbers: Columns that are aligned as numbers.
        note: A sentence below it.
        folded: Whether the reader opens it first.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """What a figure shows under one name, which a button takes away.

    Attributes:
        name: In the legend.
        x: Positions.
        y: Heights; none in a figure of dots, where the name is the height.
        low: Lower edge of a band around y.
        high: Its upper edge.
        text: What is said of each dot.
        dots: Whether the points are not joined by a line.
        stepped: Whether a value holds until the next one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float] = ()
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    text: Sequence[str] = ()
    dots: bool = False
    stepped: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Curves over calls, or one row of dots for each series.

    Attributes:
        anchor: Its id in the page.
        caption: What it shows.
        kind: ``lines`` or ``dots``.
        x: Title of the axis.
        y: Title of the axis; a figure of dots has none.
        series: What it shows.
        target: A height to be marked.
    """

    anchor: str
    caption: str
    kind: Literal["lines", "dots"] = "lines"
    x: str
    y: str = ""
    series: Sequence[Series]
    target: float | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its head.
        text: Paragraphs.
        figures: Come after the text.
        tables: Come after the figures.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: Of the page.
        summary: Paragraphs that stand first.
        sections: What follows.
    """

    title: str
    summary: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)


def write_page(page: Page, path: Path) -> Path:
    """Write a report; it replaces what is there whole or not at all.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
        StorageError: The file cannot be written.
    """
    html = render(page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, html.encode())
    except OSError as error:
        raise StorageError(f"{path}: the report cannot be written ({error})") from error
    return path


def render(page: Page) -> str:
    """The page as HTML, with all that it needs.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    need("a report", "jinja2", "plotly")
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    loader = PackageLoader("lmaas_tune.lab", "assets")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    def file(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    figures = [figure for section in page.sections for figure in section.figures]
    return environment.get_template("report.html").render(
        page=page,
        style=file("style.css"),
        script=file("curves.js"),
        figures=Markup(_script_json([_figure_json(figure) for figure in figures])),
        plotly=Markup(get_plotlyjs()) if figures else None,
        version=versions()["lmaas-tune"],
    )


def number(value: float | None) -> str:
    """Four digits, or a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.4g}"


def loss(value: float | None) -> str:
    """Four decimals, or a dash for none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share, or a dash for none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.1%}"


def spread(mean: str, std: str) -> str:
    """A mean with its standard deviation, where there is one."""
    return mean if std == NONE else f"{mean} ± {std}"


def shown(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def key_values(caption: str, pairs: Mapping[str, Any], *, folded: bool = False) -> Table:
    """A table of names and values."""
    return Table(
        caption=caption,
        columns=("Name", "Value"),
        rows=[(name.replace("_", " "), shown(value)) for name, value in pairs.items()],
        folded=folded,
    )


def _figure_json(figure: Figure) -> dict[str, Any]:
    return {**vars(figure), "series": [vars(series) for series in figure.series]}


def _script_json(content: Any) -> str:
    """JSON that no text in it can end the script element of."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
