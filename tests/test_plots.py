"""The picture of a run holds its numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lmaas_tune.errors import MissingExtraError
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner


@pytest.fixture(autouse=True)
def no_screen() -> None:
    pytest.importorskip("matplotlib").use("Agg")


def test_a_plot_draws_the_history_over_the_calls(tmp_path: Path) -> None:
    result = small_tuner(Bowl(), budget="calls=101").fit(TRAIN, VALIDATION)
    axes = result.plot()
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    history = result.history
    assert set(lines) == {
        "training, mean",
        "training, best of the generation",
        "validation",
        "kept",
    }
    for name, column in (("kept", "best_loss"), ("validation", "validation_loss")):
        np.testing.assert_array_equal(lines[name].get_xdata(), history["calls"])
        np.testing.assert_array_equal(lines[name].get_ydata(), history[column])
    assert "calls" in axes.get_xlabel()
    figure = axes.get_figure()
    assert figure is not None
    figure.savefig(tmp_path / "run.png")  # type: ignore[union-attr]
    assert (tmp_path / "run.png").stat().st_size > 5000


def test_a_plot_without_validation_leaves_its_points_out_and_goes_where_it_is_told() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    result = small_tuner(Bowl()).fit(TRAIN)
    axes = pyplot.subplots()[1]
    assert result.plot(axes) is axes
    assert "validation" not in [line.get_label() for line in axes.get_lines()]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = small_tuner(Bowl()).fit(TRAIN)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmaas-tune\[plot\]'"):
        result.plot()
