#!/usr/bin/env bash
# A training run on Cloud TPU, on one host or many: the same command on every worker.
#
#   scripts/tpu_vm.sh watch  NAME CONFIG [WORKDIR] [FLAG ...]  all of the below: a machine is requested,
#                            set up and the run started; when the machine is pre-empted, again with a
#                            new one; when the run has finished or failed, its logs are fetched and the
#                            machine is deleted
#   scripts/tpu_vm.sh create NAME            request a machine and wait until it is there
#   scripts/tpu_vm.sh setup  NAME            this checkout and its packages, on all workers
#   scripts/tpu_vm.sh run    NAME CONFIG [WORKDIR] [FLAG ...]  in the background, on all workers
#   scripts/tpu_vm.sh status NAME            of each worker: running, the exit status of its process, or
#                            idle if none was started
#   scripts/tpu_vm.sh log    NAME [WORKER]   what a worker says, worker 0 by default
#   scripts/tpu_vm.sh logs   NAME [TO]       the logs of all workers, to TO/worker-N.log (runs/NAME)
#   scripts/tpu_vm.sh fetch  NAME WORKDIR TO the records and reports, without checkpoints
#   scripts/tpu_vm.sh delete NAME
#
# WORKDIR is gs://$BUCKET/NAME by default. Put --dry-run first to see the commands instead.
# Environment:
#   ACCELERATOR  v5litepod-8 by default; several hosts from 16 chips on
#   VERSION      of the machine's software, v2-alpha-tpuv5-lite by default
#   ZONE         us-central1-a by default
#   SPOT         1 for a cheaper machine that may be pre-empted; its run must be in a bucket
#   BUCKET       for runs; DATA_DIR may be gs://BUCKET/PATH too
#   PRICE        of a chip and hour, in USD, for the line on the cost
#   POLL         seconds between two looks at the machine, 60 by default
set -euo pipefail

ACCELERATOR=${ACCELERATOR:-v5litepod-8} VERSION=${VERSION:-v2-alpha-tpuv5-lite}
ZONE=${ZONE:-us-central1-a} SPOT=${SPOT:-} POLL=${POLL:-60}
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then DRY_RUN=1; shift; fi

usage() { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }

fail() { echo "error: $*" >&2; exit 1; }

do_it() {
  if [ -n "$DRY_RUN" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpu() { do_it gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

queue() { do_it gcloud compute tpus queued-resources "$@" --zone="$ZONE"; }

# The state of the request for the machine: MISSING if there is none, UNKNOWN if gcloud cannot say.
state() {
  local problem
  {
    problem=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
      --format='value(state.state)' 2>&1 >&3) && return
  } 3>&1
  case $problem in
    *NOT_FOUND*) echo MISSING ;;
    *) echo "$problem" >&2; echo UNKNOWN ;;
  esac
}

workers() {
  if [ -n "$DRY_RUN" ]; then echo 1; return; fi
  gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --flatten='networkEndpoints[]' \
    --format='value(networkEndpoints.ipAddress)' | wc -l
}

# A command on every worker; what it prints is lost with the connection, so long ones write a log.
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() {
  queue create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$VERSION" ${SPOT:+--spot} && { [ -n "$DRY_RUN" ] || await; }
}

# Waits until the machine is there.
await() {
  local now
  while now=$(state); [ "$now" != ACTIVE ]; do
    echo "$NAME: $now"
    case $now in FAILED | SUSPEND* | MISSING) return 1 ;; esac
    sleep "$POLL"
  done
}

delete() { queue delete "$NAME" --force --quiet; }

setup() {
  do_it git archive --format=tar.gz --output=/tmp/dnrt_jax.tar.gz HEAD &&
    tpu scp /tmp/dnrt_jax.tar.gz "$NAME":dnrt_jax.tar.gz --worker=all &&
    # The machine's own Python is older than 3.11.
    on_all 'mkdir -p dnrt_jax && tar xzf dnrt_jax.tar.gz -C dnrt_jax && cd dnrt_jax &&
    python3 -m pip install -q uv && python3 -m uv venv -q --clear --python=3.12 venv &&
    python3 -m uv pip install -q --python=venv/bin/python -r requirements.txt ".[gcs,tpu]"'
}

# The words of the command that trains, from CONFIG [WORKDIR] [FLAG ...].
program() {
  local config=$1 workdir=${BUCKET:+gs://$BUCKET/$NAME}
  shift
  if [ $# -ge 1 ] && [ "${1#--}" = "$1" ]; then workdir=$1; shift; fi
  [ -n "$workdir" ] || fail "give WORKDIR or set BUCKET"
  if [ -n "$SPOT" ] && [ "${workdir#gs://}" = "$workdir" ]; then
    fail "$workdir: dies with a spot machine; give gs://BUCKET/PATH or set BUCKET"
  fi
  printf '%q ' venv/bin/python -m dnrt_jax.main --config="$config" --workdir="$workdir" "$@"
}

# On a worker: the words that join it to the others, if there are several, from the metadata of the
# machine. The environment of a shell there does not name the others.
# shellcheck disable=SC2016
JOIN='about() {
  curl -sf --retry 5 -H "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
hosts=($(about worker-network-endpoints | tr , "\n" | sed "s/.*://"))
export join=
[ ${#hosts[@]} -lt 2 ] || join="--coordinator=${hosts[0]}:8482 --processes=${#hosts[@]} \
--process=$(about agent-worker-number)"'

run() {
  local words
  words=$(program "$@")
  # shellcheck disable=SC2016
  on_all "cd dnrt_jax && rm -f run.status && { $JOIN
} && (DATA_DIR=$(printf %q "${DATA_DIR:-data}") \
nohup bash -c $(printf %q "$words"'$join; echo $? > run.status') > run.log 2>&1 < /dev/null &)"
}

status() {
  on_all 'cat dnrt_jax/run.status 2> /dev/null ||
    { [ -e dnrt_jax/run.log ] && echo running; } || echo idle'
}

logs() {
  local to=${1:-runs/$NAME} worker count
  count=$(workers)
  do_it mkdir -p "$to"
  for ((worker = 0; worker < count; worker++)); do
    tpu scp "$NAME:dnrt_jax/run.log" "$to/worker-$worker.log" --worker="$worker"
  done
}

fetch() {
  [ $# -eq 2 ] || usage
  if [ "${1#gs://}" != "$1" ]; then
    do_it mkdir -p "$2"
    do_it gcloud storage rsync --recursive --exclude='checkpoints/.*' "$1" "$2"
    return
  fi
  local archive=/tmp/dnrt_run.tar.gz
  tpu ssh "$NAME" --worker=0 \
    --command="cd dnrt_jax && tar czf $archive --exclude=checkpoints -C $(printf %q "$1") ."
  tpu scp "$NAME:$archive" "$archive" --worker=0
  do_it mkdir -p "$2"
  do_it tar xzf "$archive" -C "$2"
}

# Chips of an accelerator type: up to v4, and of v5p, the number counts cores, two a chip.
chips() {
  local number=${ACCELERATOR##*-}
  case $ACCELERATOR in v2-* | v3-* | v4-* | v5p-*) number=$((number / 2)) ;; esac
  echo "$number"
}

# The line on the cost of the seconds that machines were there.
cost() {
  awk -v seconds="$1" -v chips="$(chips)" -v price="${PRICE:-0}" -v type="$ACCELERATOR" 'BEGIN {
    hours = seconds / 3600
    printf "%s: %d chips for %.2f h, %.2f chip hours", type, chips, hours, chips * hours
    if (price > 0) printf ", %.2f USD at %s USD an hour and chip", price * chips * hours, price
    print ""
  }'
}

# What became of the run, from the exit statuses of all workers. One that lost a process, or was told
# to stop, goes on with the same command.
outcome() {
  local word became=
  for word in $(status 2> /dev/null); do
    case $word in
      0) became=${became:-finished} ;;
      75 | 137 | 143 | idle) [ "$became" = failed ] || became=again ;;
      [0-9]*) became=failed ;;
      *) became=running; break ;;
    esac
  done
  echo "${became:-running}" # no worker answers while the machine goes
}

# A machine that is there, a new one if need be.
obtain() {
  case $(state) in
    MISSING) create ;;
    FAILED | SUSPEND* | DELETING)
      echo "$NAME: the machine is gone; asking for another"
      delete || true
      create ;;
    *) await ;;
  esac
}

# Starts the run, unless it is going on already. If no worker answers, nobody knows.
begin() {
  case $(status 2> /dev/null) in
    '') echo "$NAME: no worker answers"; return 1 ;;
    *running*) echo "$NAME: its run is going on" ;;
    *) setup && run "$@" ;;
  esac
}

still_there() {
  case $(state) in ACTIVE | UNKNOWN) ;; *) return 1 ;; esac
}

watch() {
  program "$@" > /dev/null
  if [ -n "$DRY_RUN" ]; then
    create && setup && run "$@" && status && logs && delete
    return
  fi
  # Later looks that fail are repeated; of the first one, as without credentials, the user hears.
  [ "$(state)" != UNKNOWN ] || fail "gcloud cannot say whether $NAME exists; nothing was changed"
  local became=again used=0 failures=0 since
  while [ "$became" = again ]; do
    if ! obtain; then
      failures=$((failures + 1)) since=$SECONDS
    elif since=$SECONDS; begin "$@"; then
      failures=0 became=running
      while still_there && became=$(outcome) && [ "$became" = running ]; do
        sleep "$POLL"
      done
      [ "$became" != running ] || became=again
    else
      failures=$((failures + 1))
    fi
    used=$((used + SECONDS - since))
    if [ "$failures" -ge 3 ]; then
      became='failed, as no machine can be had or set up'
    elif [ "$failures" -gt 0 ]; then
      sleep "$POLL"
    fi
  done
  logs || true
  delete || echo "$NAME: may not be deleted; look: gcloud compute tpus queued-resources list" >&2
  echo "$NAME: $became"
  cost "$used"
  [ "$became" = finished ]
}

[ $# -ge 2 ] || usage
action=$1 NAME=$2
shift 2
case $action in
  create | setup | status | delete) [ $# -eq 0 ] || usage; "$action" ;;
  watch | run) [ $# -ge 1 ] || usage; "$action" "$@" ;;
  logs | fetch) "$action" "$@" ;;
  log) tpu ssh "$NAME" --worker="${1:-0}" --command="tail -n 20 -F dnrt_jax/run.log" ;;
  *) usage ;;
esac
