"""A tiny model, and a data folder with made-up rows in the layout of the paper's tasks."""

from __future__ import annotations

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Sequence
from pathlib import Path

import pytest

from lmaas_tune.lab.paper.tasks import PAPER_TASKS
from tests.hf.conftest import folder, load, one_thread  # noqa: F401

TEXTS = ("a gripping film", "the plot goes nowhere", "fine music", "a dull affair", "good story")


def write_rows(path: Path, task: str, labels: Sequence[int], each: int) -> None:
    """So many rows of each label, which no other file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                **dict.fromkeys(
                    PAPER_TASKS[task].fields,
                    f"{TEXTS[(label + number) % 5]} {label} {path.stem} {number}",
                ),
                "label": label,
            }
        )
        for number in range(each)
        for label in labels
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """sst2 and snli by splits, mrpc as one training set."""
    root = tmp_path / "data"
    for task, labels in (("sst2", (0, 1)), ("snli", (0, 1, 2))):
        for seed in (1, 2):
            for part in ("train", "dev"):
                write_rows(root / task / f"seed-{seed}" / f"{part}.jsonl", task, labels, 4)
        write_rows(root / task / "test.jsonl", task, labels, 10)
    write_rows(root / "mrpc" / "train.jsonl", "mrpc", (0, 1), 9)
    write_rows(root / "mrpc" / "test.jsonl", "mrpc", (0, 1), 5)
    return root
