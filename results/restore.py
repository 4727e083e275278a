"""Put runs that were kept, a line each, where `compare` and `reproduce` look for them.

python results/restore.py RUNS.jsonl FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(keepends=True):
        run = json.loads(line)
        folder = Path(sys.argv[2], run["task"], run["method"], f"seed-{run['seed']}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.jsonl").write_text(line, encoding="utf-8")


if __name__ == "__main__":
    main()
