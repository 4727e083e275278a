"""Prints the tables of `final.sh` and `text.sh` from the runs in a file of JSON lines.

python results/final_table.py RUNS.jsonl
lmaas-tune tune ... --json | python results/final_table.py RUNS.jsonl --add NAME    adds a run
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

KINDS = ("baseline", "start", "tuned")


def add(path: Path, name: str, content: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        line = {"run": name, "seed": content["seed"], **content}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main(path: Path) -> None:
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for run in sorted(map(json.loads, lines), key=lambda run: (run["run"], run["seed"])):
        runs.setdefault(run["run"], {})[run["seed"]] = run
    print("| run | seed | words alone | words + head | tuned | calls | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, seeds in runs.items():
        for seed, run in seeds.items():
            cells = " | ".join(f"{run[kind]['accuracy']:.3f}" for kind in KINDS)
            spent = run["spent"]
            print(f"| {name} | {seed} | {cells} | {spent['calls']} | {spent['seconds']:.0f} |")
        means = []
        for kind in KINDS:
            values = [run[kind]["accuracy"] for run in seeds.values()]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            means.append(f"**{mean(values):.3f}**{spread}")
        print(f"| {name} | mean | {' | '.join(means)} | | |")
    for name, seeds in runs.items():
        for seed, run in seeds.items():
            if run.get("prompt_text") is not None:
                print(f"\nThe prompt of {name}, seed {seed}: {run['prompt_text']!r}")
    first = next(iter(next(iter(runs.values())).values()))
    rows = {name: next(iter(seeds.values()))["tuned"]["rows"] for name, seeds in runs.items()}
    print(f"\nTest rows: {rows}. Model: {first['identity']}. Versions: {first['versions']}.")


if __name__ == "__main__":
    if sys.argv[2:3] == ["--add"]:
        add(Path(sys.argv[1]), sys.argv[3], json.load(sys.stdin))
    else:
        main(Path(sys.argv[1]))
