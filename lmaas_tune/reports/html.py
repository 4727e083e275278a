"""HTML pages of tables and plotly figures, in one file that needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmaas_tune.errors import StorageError
from lmaas_tune.extras import need
from lmaas_tune.files import write_atomically
from lmaas_tune.versions import versions

if TYPE_CHECKING:
    import pandas as pd

NONE = "-"
"""Placeholder for a missing number."""

MARKS = "●■◆▲✚✖★"
"""The marks of points, as `assets/curves.js` draws them."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: Its title.
        value: Attribute of a line, or several separated by spaces, or a function of a line.
        show: Formats the value (a tuple for several attributes); columns without it hold text,
            all others are aligned as numbers.
    """

    head: str
    value: str | Callable[[Any], Any]
    show: Callable[[Any], str] = str

    @property
    def is_number(self) -> bool:
        """Whether the column is aligned as numbers."""
        return self.show is not str

    def cell(self, line: Any) -> str:
        """The text of a cell."""
        value = attrgetter(*self.value.split()) if isinstance(self.value, str) else self.value
        return self.show(value(line))


@dataclass(frozen=True)
class Table:
    """A table of `lines`; the first column names a row, a note stands below.

    A folded table is collapsed at first.
    """

    caption: str
    lines: Sequence[Any]
    columns: Sequence[Column]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve, one row of dots, or some points; a button hides it in all figures.

    Attributes:
        name: In the legend.
        x: Positions.
        y: Heights; empty in a figure of dots, where the name is the height.
        low: Lower edge of a band around y, or of the interval of a point; `high` is the upper one.
        text: Label of each dot.
        mean: Of a row of dots; `interval` is that of the mean.
        dots: Whether the points are not joined by a line.
        stepped: Whether a value holds until the next one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float] = ()
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    text: Sequence[str] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    dots: bool = False
    stepped: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Curves over calls, one row of dots for each series, or points.

    Attributes:
        anchor: Its id in the page.
        x: Title of the axis.
        y: Title of the axis; a figure of dots has none.
        target: A height to be marked.
        marks: The texts of points; each has its mark, in the order of `MARKS`.
        groups: Names of the series that a bar beside the rows of dots joins.
        front: (x, y) of the points that a line joins.
        whole_x: Whether only whole numbers are marked on the axis.
        y_is_share: Whether the heights are shares.
    """

    anchor: str
    caption: str
    kind: Literal["lines", "dots", "points"] = "lines"
    x: str
    y: str = ""
    series: Sequence[Series]
    target: float | None = None
    marks: Sequence[str] = ()
    groups: Sequence[Sequence[str]] = ()
    front: Sequence[tuple[float, float]] = ()
    whole_x: bool = False
    y_is_share: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: paragraphs, lines for a shell, then figures, then tables."""

    title: str
    text: Sequence[str] = ()
    code: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return self.title.lower().replace(" ", "-")


def write_page(title: str, summary: Sequence[str], sections: Sequence[Section], path: Path) -> Path:
    """Write a report; an existing file is replaced atomically.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
        StorageError: The file cannot be written.
    """
    html = _render(title, summary, sections)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html.encode())
    except OSError as error:
        raise StorageError(f"{path}: the report cannot be written ({error})") from error
    return path


def _render(title: str, summary: Sequence[str], sections: Sequence[Section]) -> str:
    need("a report", "jinja2", "plotly")
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    loader = PackageLoader("lmaas_tune.reports", "assets")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    figures = [asdict(figure) for section in sections for figure in section.figures]
    # no text in the JSON may end the script element
    script_json = json.dumps(figures, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return environment.get_template("report.html").render(
        title=title,
        summary=summary,
        sections=sections,
        style=Markup(loader.get_source(environment, "style.css")[0]),
        script=Markup(loader.get_source(environment, "curves.js")[0]),
        figures=Markup(script_json),
        plotly=Markup(get_plotlyjs()) if figures else None,
        version=versions()["lmaas-tune"],
    )


def lines_of(frame: pd.DataFrame) -> list[Any]:
    """The lines of a frame, with its columns as attributes."""
    return list(frame.itertuples(index=False))


def whole(value: object) -> str:
    """A whole number, or text that stands for one."""
    return str(value)


def _formatted(how: str) -> Callable[[float | None], str]:
    return lambda value: NONE if value is None or not math.isfinite(value) else format(value, how)


number, loss, percent = _formatted(".4g"), _formatted(".4f"), _formatted(".1%")
count = _formatted(",.0f")
"""Four digits, four decimals, a share, or a whole number; each gives a dash for none."""


def spread(show: Callable[[float | None], str]) -> Callable[[tuple[Any, Any]], str]:
    """A mean with its standard deviation, if there is one."""

    def both(values: tuple[Any, Any]) -> str:
        mean, std = map(show, values)
        return mean if std == NONE else f"{mean} ± {std}"

    return both


def span(show: Callable[[float | None], str]) -> Callable[[tuple[Any, Any]], str]:
    """An interval, if there is one."""

    def both(values: tuple[Any, Any]) -> str:
        low, high = map(show, values)
        return NONE if NONE in (low, high) else f"{low} to {high}"

    return both


def key_values(caption: str, pairs: Mapping[str, Any], *, folded: bool = False) -> Table:
    """A table of names and values."""

    def name(pair: tuple[str, Any]) -> str:
        return pair[0].replace("_", " ")

    def value(pair: tuple[str, Any]) -> str:
        own = pair[1]
        return own if isinstance(own, str) else json.dumps(own, ensure_ascii=False, default=str)

    columns = [Column("Name", name), Column("Value", value)]
    return Table(caption, list(pairs.items()), columns, folded=folded)
