"""Prints the tables of `final.sh` and `text.sh` from their JSON files: final_table.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

KINDS = ("baseline", "start", "tuned")


def main(folder: Path) -> None:
    runs: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        runs.setdefault(path.stem.rpartition("-")[0], {})[path.stem.rpartition("-")[2]] = (
            json.loads(path.read_text(encoding="utf-8"))
        )
    print("| run | seed | words alone | words + calibration | tuned | calls | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, seeds in runs.items():
        for seed, run in seeds.items():
            cells = " | ".join(f"{run[kind]['accuracy']:.3f}" for kind in KINDS)
            spent = run["spent"]
            print(f"| {name} | {seed} | {cells} | {spent['calls']} | {spent['seconds']:.0f} |")
        cells = []
        for kind in KINDS:
            values = [run[kind]["accuracy"] for run in seeds.values()]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"**{mean(values):.3f}**{spread}")
        print(f"| {name} | mean | {' | '.join(cells)} | | |")
    for name, seeds in runs.items():
        for seed, run in seeds.items():
            if run.get("prompt_text") is not None:
                print(f"\nThe prompt of {name}, seed {seed}: {run['prompt_text']!r}")
    first = next(iter(next(iter(runs.values())).values()))
    rows = {name: next(iter(seeds.values()))["tuned"]["rows"] for name, seeds in runs.items()}
    print(f"\nTest rows: {rows}. Model: {first['identity']}. Versions: {first['versions']}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
