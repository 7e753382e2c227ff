#!/usr/bin/env bash
# What train.sh runs on each host: host.sh MOUNT CONFIG RUN_NAME [flags]
# Data sets are built on each host's disk, from a seed; runs and warm starts are in the bucket.
set -euo pipefail
mount="$1" config="$2" run="$3"
shift 3
# A start whose connection broke may still hold the chips. Asked to end, it saves once its iteration
# is over, if the other hosts are there to do so with it; it is not waited for any longer than that.
started="$HOME/.fiberjax.pid"
left_over() {
  tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q experiments/train.py
}
if [ -f "$started" ] && pid=$(cat "$started") && left_over; then
  echo "waiting for the run of an earlier start, process $pid, to end" >&2
  kill "$pid" 2> /dev/null || true
  for ((waited = 0; waited < ${GRACE_SECONDS:-120}; waited += 2)); do
    left_over || break
    sleep 2
  done
  while left_over; do
    kill -KILL "$pid" 2> /dev/null || true
    sleep 1
  done
fi
echo $$ > "$started"
export JAX_COMPILATION_CACHE_DIR="$HOME/jax_cache"
exec .venv/bin/python experiments/train.py --distributed=on --config="$config" \
  --workdir="$mount/runs/$run" --config.tasks.data_dir="$HOME/data" \
  --config.warm_start.directory="$mount/warm_starts" "$@"
