"""No library prints anything while a real model works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = [
    ("a gripping film", "good"),
    ("dull and awful", "bad"),
    ("a fine story", "good"),
    ("no", "bad"),
]
SEARCH = ["--budget", "calls=12", "--intrinsic-dim", "4", "--optimizer-options", "population=4"]


def lines_of(folder: Path, *argv: str) -> list[str]:
    """What a command, in a process of its own, says on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "lmaas_tune", *argv],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_no_library_speaks_while_a_prompt_is_searched_and_used(
    name: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ["--backend", "hf", "--model", str(folder(name))]
    start = ["--prompt-init", "it was", "--out", "run"]
    said = lines_of(tmp_path, "tune", *model, "--train", "rows.jsonl", *SEARCH, *start)
    assert [line for line in said if not line.startswith("note: ")] == []
    use = [*model, "--prompt", "run"]
    assert lines_of(tmp_path, "predict", *use, "--text", "a film") == []
    if name == "llama":
        assert lines_of(tmp_path, "doctor", *model) == []
        assert lines_of(tmp_path, "evaluate", *use, "--test", "rows.jsonl") == []


def test_no_library_speaks_while_optimizers_are_compared(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = lines_of(
        tmp_path,
        *("compare", "--backend", "hf", "--model", str(folder("llama")), "--train", "rows.jsonl"),
        *("--optimizers", "cma,random", "--seeds", "1,2", "--jobs", "2", "--out", "runs"),
        *("--budget", "calls=40", "--intrinsic-dim", "4", "--prompt-init", "it was"),
    )
    assert [line for line in said if not line.endswith("of 4 runs")] == []
