"""What a user sees while a real model works is ours: no library speaks between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROWS = [
    ("a gripping film", "good"),
    ("dull and awful", "bad"),
    ("a fine story", "good"),
    ("no", "bad"),
]
SEARCH = ["--budget", "calls=12", "--intrinsic-dim", "4", "--optimizer-options", "population=4"]


END = "-- end of a command --"
RUN = f"""
import json, sys
from lmaas_tune.cli import main
for argv in json.loads(sys.argv[1]):
    assert main(argv) == 0, argv
    print({END!r}, file=sys.stderr, flush=True)
"""


def lines_of(folder: Path, *commands: Sequence[str]) -> list[list[str]]:
    """What each command says on standard error; a process of its own runs one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, rest = done.stderr.split(f"{END}\n")
    assert rest == ""
    return [text.splitlines() for text in said]


def test_no_library_speaks_while_a_prompt_is_searched_and_used(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    searches, uses = [], []
    for name in ("llama", "bert", "t5"):
        model = ["--backend", "hf", "--model", str(folder(name))]
        start = ["--prompt-init", "it was", "--out", name]
        searches.append(["tune", *model, "--train", "rows.jsonl", *SEARCH, *start])
        uses.append(["predict", *model, "--prompt", name, "--text", "a film"])
    llama = ["--backend", "hf", "--model", str(folder("llama"))]
    uses.append(["doctor", *llama])
    uses.append(["evaluate", *llama, "--prompt", "llama", "--test", "rows.jsonl"])
    said = lines_of(tmp_path, *searches, *uses)
    for lines in said[: len(searches)]:
        assert [line for line in lines if not line.startswith("note: ")] == []
    assert said[len(searches) :] == [[]] * len(uses)


def test_no_library_speaks_while_optimizers_are_compared(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare = [
        *("compare", "--backend", "hf", "--model", str(folder("llama")), "--train", "rows.jsonl"),
        *("--optimizers", "cma,random", "--seeds", "1", "--jobs", "2", "--out", "runs"),
        *("--budget", "calls=40", "--intrinsic-dim", "4", "--prompt-init", "it was"),
    ]
    (said,) = lines_of(tmp_path, compare)
    assert [line for line in said if not line.endswith("of 2 runs")] == []
