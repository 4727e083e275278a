#!/usr/bin/env bash
# Four optimizers on three tasks and five seeds, at 150 calls, with the words head; all begin at the
# best of the built-in wordings. Gives a line of JSON for each run in results/comparison-words.jsonl,
# the page results/comparison-words.html, and the ranking of all runs.
#   results/comparison.sh MODEL DATA [JOBS]           MODEL a folder or hub name
# Goes on where it was stopped, with the file of lines alone too. Needs `lmaas-tune` and `python` on
# the path, with the extra `reproduce` and what `lmaas-tune compare` takes.
set -euo pipefail
name=comparison-words model=$1 data=$2 jobs=${3:-1}
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-$here/runs} # journals and prompts, which are not kept in the repository
mkdir -p "$work/$name"
touch "$here/$name.jsonl"

# the templates of results/table.sh, and 500 of the test rows, drawn once
python - "$data" "$work" <<'TASKS'
import json
import random
import sys
from pathlib import Path

from lmaas_tune.lab.paper import PAPER_TASKS

data, work = (Path(path).absolute() for path in sys.argv[1:])
tasks = {}
for name in ("sst2", "agnews", "mrpc"):
    rows = (data / name / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    test = work / f"{name}-test.jsonl"
    test.write_text("".join(random.Random(0).sample(rows, min(500, len(rows)))), encoding="utf-8")
    task = PAPER_TASKS[name].wording("text-first", "causal").task
    tasks[name] = {
        "train": str(data / name / "seed-{seed}" / "train.jsonl"),
        "validation": str(data / name / "seed-{seed}" / "dev.jsonl"),
        "test": str(test),
        "template": task.template.text,
        "labels": dict(task.verbalizer.words),
    }
(work / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
TASKS

keep() { # adds the runs of $work to the others, without their command, which has this machine's paths
  {
    cat "$here/$name.jsonl"
    find "$work/$name" -name run.jsonl -exec cat {} + | sed -E 's/"command": "([^"\\]|\\.)*"/"command": ""/'
  } | LC_ALL=C sort -u >"$work/all"
  mv "$work/all" "$here/$name.jsonl"
}
python "$here/restore.py" "$here/$name.jsonl" "$work/$name"
trap keep EXIT
lmaas-tune compare --model "$model" --backend-options dtype=float32,max_kept_bytes=4000000000 \
  --head words --averaged 1 --budget calls=150 --tasks "$work/tasks.json" \
  --optimizers gauss-newton,cma,one-plus-one,random --seeds 13,21,42,87,100 \
  --jobs "$jobs" --out "$work/$name"
keep
lmaas-tune report "$here/$name.jsonl" -o "$here/$name.html"
