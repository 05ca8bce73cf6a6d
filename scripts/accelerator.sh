#!/usr/bin/env bash
# What only a GPU or TPU can show: the benchmarks in bfloat16, and five trainings of ViT-Tiny/4.
#
#   scripts/accelerator.sh [--dry-run] [--config.FIELD=VALUE ...]     fields of the trainings
#
# A call ends after nine minutes and the next one goes on, until it says "finished"; its status is
# then 0, and 75 before. Each call merges what is there into $RESULTS and writes the page $PAGE
# (results/accelerator.jsonl, docs/accelerator.md). --dry-run prints the commands instead.
#
# The trainings take 300 epochs of cifar10-jpeg in $DATA_DIR (see docs/study.md). $RUNS is the folder
# of the runs, $LIMIT the seconds of a call, $PYTHON the interpreter; $BENCHMARKS, $BATCH_SIZES,
# $MODEL, $DTYPE, $ROUNDS and $CASES say what is measured.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
RUNS=${RUNS:-runs/accelerator}
RESULTS=${RESULTS:-results/accelerator.jsonl}
PAGE=${PAGE:-docs/accelerator.md}
LIMIT=${LIMIT:-540}
BENCHMARKS=${BENCHMARKS:-step infer peer loop}
BATCH_SIZES=${BATCH_SIZES:-256 1024}
MODEL=${MODEL:-vit_tiny_patch4_32}
DTYPE=${DTYPE:-bfloat16}
ROUNDS=${ROUNDS:-9}
CASES=${CASES:-gelu gelu+arr raa raa+arr raa+zero}
SAVING=30 # seconds for a training to save a checkpoint after the signal
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then DRY_RUN=1; shift; fi
FAILED=()

merge() {
  "$PYTHON" -m scripts.accelerator_page --runs="$RUNS" --results="$RESULTS" --page="$PAGE"
}

again() {
  merge
  echo "not finished: call again"
  exit 75
}

# part KIND NAME COMMAND...: runs COMMAND for the time that is left, unless it was finished. What it
# prints goes to $RUNS/NAME.out, its messages to $RUNS/NAME.log.
part() {
  local kind=$1 name=$2 start=$SECONDS left=$((LIMIT - SAVING - SECONDS)) status=0
  shift 2
  if [ -n "$DRY_RUN" ]; then printf '%q ' "$@"; echo; return; fi
  if [ -e "$RUNS/$name.out" ]; then return; fi
  if [ "$left" -lt 1 ]; then again; fi
  echo "$name"
  timeout --kill-after="$SAVING" "$left" "$@" >"$RUNS/$name.partial" 2>"$RUNS/$name.log" || status=$?
  case $status in
    0) mv "$RUNS/$name.partial" "$RUNS/$name.out"; return ;;
    124 | 137)
      # A training goes on from its checkpoint; a benchmark begins again, with more time.
      if [ "$kind" = training ] || [ "$start" -gt $((LIMIT / 10)) ]; then again; fi
      echo "$name: takes longer than a call" >>"$RUNS/$name.log" ;;
  esac
  FAILED+=("$name")
  tail -n 1 "$RUNS/$name.log"
}

benchmark() {
  local words=("$1" --batch_size="$2" --dtype="$DTYPE" --rounds="$ROUNDS" --json)
  case $1 in
    step | infer) words+=(--model="$MODEL") ;;
    peer) words+=(--compile) ;;
  esac
  part benchmark "$1-$2" "$PYTHON" -m dnrt_jax.benchmark "${words[@]}"
}

# training CASE FLAG...: a case is an activation, with +arr or +zero the regularisation.
training() {
  local act=${1%%+*} words=()
  case $1 in
    *+arr) ;;
    *+zero) words+=(--config.arr.target=zero) ;;
    *) words+=(--config.arr.weight=0) ;;
  esac
  words+=(--config.model.act="$act" --config.model.dtype="$DTYPE" "${@:2}")
  part training "$1" "$PYTHON" -m dnrt_jax.main --config=configs/cifar10.py --workdir="$RUNS/$1" \
    --config.data.name=cifar10-jpeg "${words[@]}"
}

if [ -z "$DRY_RUN" ]; then mkdir -p "$RUNS"; fi
for name in $BENCHMARKS; do
  if ! "$PYTHON" -m dnrt_jax.benchmark "$name" --help >/dev/null 2>&1; then
    echo "$name: no benchmark here; left out"
    continue
  fi
  for size in $BATCH_SIZES; do benchmark "$name" "$size"; done
done
for case in $CASES; do training "$case" "$@"; done
if [ -n "$DRY_RUN" ]; then exit; fi
merge
if [ ${#FAILED[@]} -gt 0 ]; then
  echo "failed: ${FAILED[*]}; their messages are in $RUNS/NAME.log"
  exit 1
fi
echo finished
