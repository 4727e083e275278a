"""The notebooks of examples/ run from their first cell to their last, and hold no outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmaas_tune.demo_model import SMOLLM2, cached

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def read(name: str) -> Any:
    return nbformat.read(EXAMPLES / name, as_version=4)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_no_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def executed(name: str, folder: Path) -> list[Any]:
    """The outputs of a notebook's cells of code."""
    notebook = read(name)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def html_of(outputs: list[Any]) -> str:
    return str(outputs[-1].data["text/html"])


def test_a_prompt_is_tuned_from_a_frame_and_labels_another(tmp_path: Path) -> None:
    if cached(SMOLLM2) is None:
        pytest.skip("the demo's model is not here: `make demo` fetches it")
    cells = executed("tune_a_prompt.ipynb", tmp_path)
    *_, tuned, compared, labelled, saved = cells
    assert "<svg" in html_of(tuned)
    assert "tuned prompt" in html_of(compared)
    assert "probability" in html_of(labelled)
    assert saved[-1].data["text/plain"].count("'") == 2 * 3
    printed = "".join(output.get("text", "") for cell in cells for output in cell)
    assert "/50 calls" in printed
    assert "IProgress" not in printed  # where there are no widgets, the bar is of text


def test_optimizers_are_compared_with_pictures(tmp_path: Path) -> None:
    _, ranked, points, tested, soon = executed("compare_optimizers.ipynb", tmp_path)
    assert "Mean rank" in html_of(ranked) and "<svg" in html_of(ranked)
    assert "image/png" in points[-1].data
    assert "Friedman(" in tested[0].text and "p_holm" in html_of(tested)
    assert "calls_median" in html_of(soon)
