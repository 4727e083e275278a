#!/usr/bin/env bash
# The table "The main job" of results/README.md: a line of JSON for each run in results/final.jsonl.
#   results/final.sh MODEL DATA        MODEL a folder or hub name, DATA with sst2/ and agnews/
# A run whose line is there already is not made again. Needs `lmaas-tune` and `python` on the path.
set -euo pipefail
model=$1 data=$2
here=$(cd "$(dirname "$0")" && pwd)
out=$here/final.jsonl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch "$out"

# 1,000 of the 7,600 test rows of agnews, drawn once
python - "$data/agnews/test.jsonl" "$work/agnews-test.jsonl" <<'ROWS'
import random
import sys

rows = open(sys.argv[1], encoding="utf-8").readlines()
open(sys.argv[2], "w", encoding="utf-8").writelines(random.Random(0).sample(rows, 1000))
ROWS

tune() { # name train-folder test-file seed, then what is the task's own
  local name=$1 folder=$2 test=$3 seed=$4
  shift 4
  grep -q "^{\"run\": \"$name\", \"seed\": $seed," "$out" && return
  lmaas-tune tune --backend hf --model "$model" --train "$folder/train.jsonl" \
    --validation "$folder/dev.jsonl" --test "$test" --budget calls=300 --seed "$seed" \
    --optimizer cma --validation-rows select --averaged 1 --json "$@" >"$work/run.json"
  python "$here/final_table.py" "$out" --add "$name" <"$work/run.json"
}

sst2() { # head
  for seed in 13 21 42; do
    tune "sst2-$1" "$data/sst2/seed-$seed" "$data/sst2/test.jsonl" "$seed" \
      --template $'Review: {sentence}\n {prompt} {label}' --prompt-init "The sentiment is" \
      --labels '{"0": "negative", "1": "positive"}' --head "$1"
  done
}

agnews() { # head
  for seed in 13 21 42; do
    tune "agnews-$1" "$data/agnews/seed-$seed" "$work/agnews-test.jsonl" "$seed" \
      --template $'Text: {text}\n {prompt} {label}' --prompt-init "The topic is" \
      --labels '{"0": "World", "1": "Sports", "2": "Business", "3": "Technology"}' \
      --head "$1"
  done
}

sst2 bias
agnews bias
sst2 none
python "$here/final_table.py" "$out"
