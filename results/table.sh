#!/usr/bin/env bash
# The paper's table on SmolLM2-135M, at a setting for a processor: a line of JSON for each run in
# results/table-float32.jsonl, and the table of all its runs. (results/table.jsonl has those in bfloat16
# of the version before heads.)
#   results/table.sh MODEL DATA        MODEL a folder or hub name, DATA as docs/reproduce.md says
#   results/table.sh MODEL DATA 'bbt bbtv2' 'sst2 agnews'     some rows and columns of it
# Goes on where it was stopped, with that file alone too. Needs `lmaas-tune` and `python` on the path,
# with the extra `reproduce`.
set -euo pipefail
model=$1 data=$2
methods=${3:-default manual manual-calibrated bbt bbtv2 icl tfidf mean-states feature-mlp feature-bilstm prompt-tuning \
  p-tuning-v2 lora model-tuning prompt-tuning-pretrained bbt-pretrained}
tasks=${4:-sst2 agnews mrpc snli rte yelpp dbpedia}
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-$here/runs} # journals and prompts, which are not kept in the repository
kept=$here/table-float32.jsonl

setting=(--model "$model" --backend-options dtype=float32,max_kept_bytes=7000000000 --data "$data")

pretrained=()
if [[ " $methods " == *-pretrained* ]]; then
  # SNLI's rows for the other two; RTE's for SNLI, which must not have seen its own task
  for source in snli rte; do
    [ -e "$work/prompts/$source/prompt.json" ] ||
      lmaas-tune pretrain "${setting[@]}" --task "$source" --out "$work/prompts/$source"
  done
  pretrained=(--pretrained "mrpc,rte=$work/prompts/snli" --pretrained "snli=$work/prompts/rte")
fi

keep() { # adds the runs of $work to the others
  {
    cat "$kept"
    find "$work/table" -name run.jsonl -exec cat {} +
  } | LC_ALL=C sort -u >"$work/all"
  mv "$work/all" "$kept"
}
mkdir -p "$work/table"
touch "$kept"
python "$here/restore.py" "$kept" "$work/table"
trap keep EXIT

for task in $tasks; do
  # shellcheck disable=SC2086
  lmaas-tune reproduce "${setting[@]}" --tasks "$task" --seeds 13,21,42 \
    --shots 16,dbpedia=4 --test-rows 500 --budget calls=300 \
    --methods "$(echo $methods | tr ' ' ,)" --out "$work/table" "${pretrained[@]}" >/dev/null
done
keep
lmaas-tune reproduce --table --out "$kept"
