#!/usr/bin/env bash
# Text prompts on sst2, seed 13, at 200 calls, of a model behind `lmaas-tune serve`, which is started
# here: a line of JSON for each run in results/text.jsonl.
#   results/text.sh MODEL DATA         MODEL a folder or hub name, DATA with sst2/
# A run whose line is there already is not made again. Needs `lmaas-tune` and `python` on the path.
set -euo pipefail
model=$1 data=$2
here=$(cd "$(dirname "$0")" && pwd)
out=$here/text.jsonl
work=$(mktemp -d)
touch "$out"

python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$work/key"
lmaas-tune serve --model "$model" --port 0 --api-key-file "$work/key" --json >"$work/service" 2>/dev/null &
trap 'kill %1; rm -rf "$work"' EXIT
until [ -s "$work/service" ]; do sleep 1; done
url=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$work/service")

for head in none bias; do
  for seed in 13; do
    name=sst2-text-$head
    grep -q "^{\"run\": \"$name\", \"seed\": $seed," "$out" && continue
    lmaas-tune tune --backend lmaas --url "$url" --api-key-file "$work/key" --prompt text --seed "$seed" \
      --train "$data/sst2/seed-$seed/train.jsonl" --validation "$data/sst2/seed-$seed/dev.jsonl" \
      --test "$data/sst2/test.jsonl" --template $'Review: {sentence}\n{prompt} {label}' \
      --labels '{"0": "negative", "1": "positive"}' --head "$head" \
      --optimizer cma --validation-rows select --averaged 1 \
      --budget calls=200 --json >"$work/run.json"
    python "$here/final_table.py" "$out" --add "$name" <"$work/run.json"
  done
done
python "$here/final_table.py" "$out"
