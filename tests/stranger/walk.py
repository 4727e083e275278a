"""Walks through a page as a stranger would: saves its files, types its commands, runs its program.

Run by the Python of an environment that has the package as a wheel, and mypy::

    python tests/stranger/walk.py docs/spreadsheet.md

The environment is there already, so `pip` lines are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def run(command: list[str] | str, folder: Path) -> None:
    print("$", command, flush=True)
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shell = isinstance(command, str)
    done = subprocess.run(command, shell=shell, cwd=folder, env={**os.environ, "PATH": bin_first})
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}")


def walk(page: Path, folder: Path) -> None:
    for language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            (folder / title).write_text(text, encoding="utf-8")
        elif language == "python":
            (folder / "program.py").write_text(text, encoding="utf-8")
            run([sys.executable, "program.py"], folder)
            # of the user's libraries, pandas and scikit-learn come without types
            run(
                [
                    sys.executable,
                    "-m",
                    "mypy",
                    "--strict",
                    "--ignore-missing-imports",
                    "program.py",
                ],
                folder,
            )
        elif not text.startswith("pip "):
            run(text, folder)


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        walk(page, folder)
        header, *rows = (folder / "labelled.csv").read_text(encoding="utf-8").splitlines()
        kept = (folder / "new.csv").read_text(encoding="utf-8").splitlines()[0].split(";")
        assert header.split(",") == [*kept, "label", "probability", "margin"], header
        assert rows and all(row.split(",")[-3] in ("billing", "technical") for row in rows), rows


if __name__ == "__main__":
    main()
