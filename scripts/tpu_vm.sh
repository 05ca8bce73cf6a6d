#!/usr/bin/env bash
# A training run on a Cloud TPU VM, of one host or of many: the same command on every worker.
#
#   scripts/tpu_vm.sh create NAME [ACCELERATOR [VERSION]]   as v5litepod-8 v2-alpha-tpuv5-lite
#   scripts/tpu_vm.sh setup  NAME            this checkout and its packages, on all workers
#   scripts/tpu_vm.sh run    NAME CONFIG WORKDIR [FLAG ...] in the background, on all workers
#   scripts/tpu_vm.sh log    NAME            what process 0 says
#   scripts/tpu_vm.sh resume NAME CONFIG WORKDIR [FLAG ...] after a pre-emption: create, setup, run
#   scripts/tpu_vm.sh fetch  NAME WORKDIR TO the records and reports, without checkpoints
#   scripts/tpu_vm.sh delete NAME
#
# Put --dry-run first to see the commands instead. $ZONE is the zone (default us-central1-a), and
# $SPOT=1 asks for a pre-emptible machine. Of several hosts, all must see WORKDIR and $DATA_DIR, as
# a bucket mounted by gcsfuse or Filestore is seen: checkpoints are written by all of them together.
set -euo pipefail

ZONE=${ZONE:-us-central1-a}
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then DRY_RUN=1; shift; fi

usage() { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }

do_it() {
  if [ -n "$DRY_RUN" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpu() { do_it gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

# The command on every worker; what it prints is lost with the connection, so long ones write a log.
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() {
  local accelerator=${1:-v5litepod-8} version=${2:-v2-alpha-tpuv5-lite}
  tpu create "$NAME" --accelerator-type="$accelerator" --version="$version" ${SPOT:+--spot}
}

setup() {
  do_it git archive --format=tar.gz --output=/tmp/dnrt_jax.tar.gz HEAD
  tpu scp /tmp/dnrt_jax.tar.gz "$NAME":dnrt_jax.tar.gz --worker=all
  on_all 'mkdir -p dnrt_jax && tar xzf dnrt_jax.tar.gz -C dnrt_jax && cd dnrt_jax &&
    pip install -q -r requirements.txt "jax[tpu]"'
}

run() {
  [ $# -ge 2 ] || usage
  local program
  program=$(printf '%q ' python3 -m dnrt_jax.main --config="$1" --workdir="$2" "${@:3}")
  on_all "cd dnrt_jax && DATA_DIR=${DATA_DIR:-data} nohup $program > run.log 2>&1 < /dev/null &"
}

resume() {
  # A pre-empted TPU stays in the list and has to go before one of its name can be made. The run
  # itself resumes from its last checkpoint with the command that began it.
  local accelerator version
  accelerator=${ACCELERATOR:-v5litepod-8} version=${VERSION:-v2-alpha-tpuv5-lite}
  tpu delete "$NAME" --quiet
  create "$accelerator" "$version"
  setup
  run "$@"
}

fetch() {
  [ $# -eq 2 ] || usage
  local archive=/tmp/dnrt_run.tar.gz
  tpu ssh "$NAME" --worker=0 \
    --command="cd dnrt_jax && tar czf $archive --exclude=checkpoints -C $(printf %q "$1") ."
  tpu scp "$NAME:$archive" "$archive" --worker=0
  do_it mkdir -p "$2"
  do_it tar xzf "$archive" -C "$2"
}

[ $# -ge 2 ] || usage
action=$1 NAME=$2
shift 2
case $action in
  create | setup | run | resume | fetch) "$action" "$@" ;;
  log) tpu ssh "$NAME" --worker=0 --command="tail -n 20 -F dnrt_jax/run.log" ;;
  delete) tpu delete "$NAME" --quiet ;;
  *) usage ;;
esac
