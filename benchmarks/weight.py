"""What the package weighs: an installation without extras, and the time of its imports.

Prints the number of packages and the megabytes of a new environment, without pip itself, and the
time of each import as a multiple of numpy's. Needs a package index::

    python benchmarks/weight.py
"""

from __future__ import annotations

import subprocess
import tempfile
import venv
from pathlib import Path

TURNS = 7
STATEMENTS = ("import numpy", "import lmaas_tune", "from lmaas_tune import Tuner")
TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
SIZE = """
from importlib import metadata
own = {"pip", "setuptools"}
there = [found for found in metadata.distributions() if found.name not in own]
files = {file.locate() for found in there for file in found.files or ()}
print(len(there), sum(file.stat().st_size for file in files if file.exists()))
"""


def run(python: Path, *words: str) -> str:
    return subprocess.run([python, *words], check=True, capture_output=True, text=True).stdout


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        run(python, "-m", "pip", "install", "--quiet", str(root))
        packages, size = run(python, "-c", SIZE).split()
        print(f"{packages} packages, {int(size) / 1e6:.0f} MB")
        turns = [
            {text: float(run(python, "-c", TIMED.format(text))) for text in STATEMENTS}
            for _ in range(TURNS + 1)
        ][1:]  # the first reads the files from the disk
    best = {text: min(turn[text] for turn in turns) for text in STATEMENTS}
    for text, seconds in best.items():
        print(f"{text:<30}{seconds * 1e3:6.0f} ms {seconds / best['import numpy']:6.2f}")


if __name__ == "__main__":
    main()
