#!/usr/bin/env bash
# What only a GPU or TPU can show: the benchmarks in bfloat16, and five trainings of ViT-Tiny/4.
#
#   scripts/accelerator.sh [--dry-run] [--config.FIELD=VALUE ...]     fields of the trainings
#
# A call ends after nine minutes and the next one goes on, until it says "finished"; its status is
# then 0, and 75 before. Ctrl-C ends it earlier. What fails is left out from then on; the last call
# names it and ends with 1. Each call merges what is there into $RESULTS and writes the page $PAGE
# (results/accelerator.jsonl, docs/accelerator.md). --dry-run prints the commands instead.
#
# The trainings take 300 epochs of cifar10-jpeg in $DATA_DIR (see docs/study.md). $RUNS is the folder
# of the runs, $LIMIT the seconds of a call, $PYTHON the interpreter; $BENCHMARKS, $BATCH_SIZES,
# $MODEL, $DTYPE, $ROUNDS and $CASES say what is measured. Other settings need another $RUNS.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
RUNS=${RUNS:-runs/accelerator}
RESULTS=${RESULTS:-results/accelerator.jsonl}
PAGE=${PAGE:-docs/accelerator.md}
LIMIT=${LIMIT:-540}
BENCHMARKS=${BENCHMARKS-step infer peer loop}
BATCH_SIZES=${BATCH_SIZES-256 1024}
MODEL=${MODEL:-vit_tiny_patch4_32}
DTYPE=${DTYPE:-bfloat16}
ROUNDS=${ROUNDS:-9}
CASES=${CASES-gelu gelu+arr raa raa+arr raa+zero}
SAVING=30 # seconds for a training to save a checkpoint after the signal
HAS_PEER='import jax; assert jax.default_backend() != "tpu" and jax.device_count() == 1'
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then DRY_RUN=1; shift; fi
CHILD=

merge() {
  "$PYTHON" -m scripts.accelerator_page --runs="$RUNS" --results="$RESULTS" --page="$PAGE"
}

again() {
  merge
  echo "not finished: call again"
  exit 75
}

# A training saves a checkpoint when it is told to stop.
interrupted() {
  trap '' INT TERM
  if [ -n "$CHILD" ]; then kill "$CHILD" 2>/dev/null && wait "$CHILD" || true; fi
  merge
  echo "interrupted: the next call goes on"
  exit 130
}
trap interrupted INT TERM

# part KIND NAME COMMAND...: runs COMMAND for the time that is left, unless it has ended before. What
# it prints goes to $RUNS/NAME.out, or NAME.failed, its messages to $RUNS/NAME.log.
part() {
  local kind=$1 name=$2 start=$SECONDS left=$((LIMIT - SAVING - SECONDS)) status=0 command
  shift 2
  command=$(printf '%q ' "$@")
  if [ -n "$DRY_RUN" ]; then echo "$command"; return; fi
  if [ -e "$RUNS/$name.command" ] && [ "$command" != "$(cat "$RUNS/$name.command")" ]; then
    echo "$RUNS has $name by another command; give another folder as RUNS" >&2
    exit 2
  fi
  if [ -e "$RUNS/$name.out" ] || [ -e "$RUNS/$name.failed" ]; then return; fi
  if [ "$left" -lt 1 ]; then again; fi
  echo "$name"
  echo "$command" >"$RUNS/$name.command"
  if [ "$kind" = benchmark ]; then rm -f "$RUNS/$name.partial"; fi
  timeout --kill-after="$SAVING" "$left" "$@" >>"$RUNS/$name.partial" 2>>"$RUNS/$name.log" &
  CHILD=$!
  wait "$CHILD" || status=$?
  CHILD=
  if [ "$status" = 0 ]; then mv "$RUNS/$name.partial" "$RUNS/$name.out"; return; fi
  if [ $((SECONDS - start)) -ge "$left" ]; then
    # A training goes on from its checkpoint; a benchmark begins again, with more time.
    if [ "$kind" = training ] || [ "$start" -gt $((LIMIT / 10)) ]; then again; fi
    echo "$name: takes longer than a call" >>"$RUNS/$name.log"
  fi
  mv "$RUNS/$name.partial" "$RUNS/$name.failed"
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
  if [ "$name" = peer ] && ! "$PYTHON" -c "$HAS_PEER" 2>/dev/null; then
    echo "peer: compares on one CPU or GPU; left out"
    continue
  fi
  for size in $BATCH_SIZES; do benchmark "$name" "$size"; done
done
for case in $CASES; do training "$case" "$@"; done
if [ -n "$DRY_RUN" ]; then exit; fi
merge
failed=
for path in "$RUNS"/*.failed; do
  if [ -e "$path" ]; then failed+=" $(basename "$path" .failed)"; fi
done
if [ -n "$failed" ]; then
  echo "failed:$failed; messages are in $RUNS/NAME.log; without NAME.failed a call tries again"
  exit 1
fi
echo finished
