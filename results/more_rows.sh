#!/usr/bin/env bash
# What five times as many labelled rows give to a linear probe: the rows of all five splits together, for
# sst2 and agnews, judged on the same test rows as results/table.sh.
#   results/more_rows.sh MODEL DATA [OUT]
set -euo pipefail
model=$1 data=$2 out=${3:-runs/more_rows}
for task in sst2 agnews; do
  shots=$(python - "$data/$task" "$out/data/$task" <<'PYTHON'
import collections, json, pathlib, random, shutil, sys
source, target = map(pathlib.Path, sys.argv[1:])
files = sorted(source.glob("seed-*/train.jsonl")) + sorted(source.glob("seed-*/dev.jsonl"))
rows = {line for file in files for line in file.read_text().splitlines()}
labels = collections.defaultdict(list)
for line in sorted(rows):
    labels[json.loads(line)["label"]].append(line)
half = min(map(len, labels.values())) // 2
drawn = random.Random(1)
parts = {"train": [], "dev": []}
for lines in labels.values():
    drawn.shuffle(lines)
    parts["train"] += lines[:half]
    parts["dev"] += lines[half : 2 * half]
(target / "seed-1").mkdir(parents=True, exist_ok=True)
for part, lines in parts.items():
    (target / "seed-1" / f"{part}.jsonl").write_text("".join(line + "\n" for line in lines))
shutil.copy(source / "test.jsonl", target / "test.jsonl")
print(half)
PYTHON
)
  lmaas-tune reproduce --model "$model" --backend-options dtype=float32 --data "$out/data" --tasks "$task" \
    --seeds 1 --shots "$shots" --test-rows 500 --methods tfidf,mean-states --out "$out/runs"
done
